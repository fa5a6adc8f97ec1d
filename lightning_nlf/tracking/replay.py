"""Replaying a journal: for runs made without a server, and for runs whose process died."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_nlf.tracking.artifacts import is_inside
from lightning_nlf.tracking.destination import Destination
from lightning_nlf.tracking.journal import (
    JOURNAL,
    Journal,
    faults,
    first_start,
    last_lifecycle,
    read_records,
    writer_alive,
)
from lightning_nlf.tracking.position import Position, resolve_tracking_uri


def run_tracking_uri(run_dir: Path, tracking_uri: str | None = None) -> str:
    """`tracking_uri`, else what the run was given, else what `resolve_tracking_uri` finds."""
    return resolve_tracking_uri(run_dir, tracking_uri or first_start(run_dir / JOURNAL).get("tracking_uri"))


def sync(run_dir: str | Path, tracking_uri: str | None = None) -> tuple[Position, int]:
    """Send what has not arrived yet, and return the position reached and the number of records and artifacts sent.

    Sending again what has arrived changes nothing. A run whose process died without a word is ended as FAILED, at the
    time of its last record; one that is still being written stays RUNNING.

    Lines of the journal that are no records are left out; `journal.faults` tells them.

    Raises:
        ValueError: `run_dir` has no journal, or its journal is outside the folder or does not describe a run.
        Exception: whatever MLflow and its transport raise; what has been sent is noted.
    """
    run_dir = Path(run_dir)
    path = run_dir / JOURNAL
    if not os.path.lexists(path):
        raise ValueError(f"{run_dir} has no journal")
    if not is_inside(run_dir, path):
        raise ValueError(f"{path} is no file in this folder that can be read: nothing is sent")
    if not first_start(path):
        number, fault = next(faults(path), (1, "nothing begins a run"))
        raise ValueError(f"{path}:{number}: {fault}; the journal has no start record, nothing is sent")
    if last_lifecycle(path)["kind"] == "start" and not writer_alive(path):
        _end_as_failed(run_dir)
    destination = Destination(run_dir, run_tracking_uri(run_dir, tracking_uri))
    sent = 0
    while number := destination.ship_next():
        sent += number
    return destination.open()[1], sent


def _end_as_failed(run_dir: Path) -> None:
    last = max(record.get("time", 0) for record, _ in read_records(run_dir / JOURNAL))
    journal = Journal(run_dir)
    journal.append("end", status="FAILED", time=last)
    journal.close()
