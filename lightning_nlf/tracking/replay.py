"""Send the journal of a run that had no server or whose process died."""

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
    """The tracking URI: the argument, else the URI in the journal, else the result of `resolve_tracking_uri`."""
    return resolve_tracking_uri(run_dir, tracking_uri or first_start(run_dir / JOURNAL).get("tracking_uri"))


def sync(run_dir: str | Path, tracking_uri: str | None = None) -> tuple[Position, int]:
    """Send the records and artifacts of a run that have not arrived yet.

    Sending a record again changes nothing. A run whose process died is ended as FAILED at the time of its last record.
    A run that is still being written stays RUNNING. Invalid lines of the journal are skipped. `journal.faults` lists
    these lines.

    Returns:
        The new position, and the number of records and artifacts sent.

    Raises:
        ValueError: `run_dir` has no journal, or its journal is outside the folder or has no start record.
        Exception: Any error of MLflow and its transport. The position is saved, so sent records are not sent again.
    """
    run_dir = Path(run_dir)
    path = run_dir / JOURNAL
    if not os.path.lexists(path):
        raise ValueError(f"{run_dir} has no journal")
    if not is_inside(run_dir, path):
        raise ValueError(f"{path} is not a readable file in this folder, so nothing was sent")
    if not first_start(path):
        number, fault = next(faults(path), (1, "not a start record"))
        raise ValueError(f"{path}:{number}: {fault}; the journal has no start record, so nothing was sent")
    if last_lifecycle(path)["kind"] == "start" and not writer_alive(path):
        _end_as_failed(run_dir)
    destination = Destination(run_dir, run_tracking_uri(run_dir, tracking_uri))
    count = 0
    while number := destination.ship_next():
        count += number
    return destination.open()[1], count


def _end_as_failed(run_dir: Path) -> None:
    last = max(record.get("time", 0) for record, _ in read_records(run_dir / JOURNAL))
    journal = Journal(run_dir)
    journal.append("end", status="FAILED", time=last)
    journal.close()
