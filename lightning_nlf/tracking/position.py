"""Where a run's records go, and how far they have come: `<run folder>/mlflow.json`.

    {"http://127.0.0.1:5000": {"journal": "…", "experiment_id": "1", "run_id": "…", "offset": 8192, "artifacts": []}}

One entry for each tracking URI, so that a run made offline can be replayed to one server and then to another. The file
is replaced atomically: a kill leaves the old entry or the new one, and the old one only means that records are sent
twice, which MLflow's primary key makes harmless.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_nlf.tracking.artifacts import is_inside
from lightning_nlf.tracking.uris import DATA_BASE, sqlite_uri, without_credentials

STATE = "mlflow.json"


@dataclass
class Position:
    """The MLflow run of one journal on one server.

    With the byte of the journal up to which it has arrived, and the artifacts named before that byte that have not.
    """

    journal: str
    experiment_id: str
    run_id: str
    offset: int = 0
    artifacts: list[str] = field(default_factory=list)


def resolve_tracking_uri(run_dir: Path, tracking_uri: str | None = None) -> str:
    """`tracking_uri`, else the variable MLFLOW_TRACKING_URI, else `mlflow.db` in the folder above the run folder."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(run_dir)


def default_tracking_uri(run_dir: Path) -> str:
    """`mlflow.db` in the folder above the run folder."""
    return sqlite_uri(run_dir.resolve().parent / DATA_BASE)


def read_position(run_dir: Path, tracking_uri: str) -> Position | None:
    """The position stored for `tracking_uri`, or None where there is none or the file is not what this wrote."""
    entry = _read(run_dir).get(without_credentials(tracking_uri))
    if not isinstance(entry, dict):
        return None
    try:
        position = Position(**entry)
    except TypeError:
        return None
    texts = [position.journal, position.experiment_id, position.run_id]
    is_position = isinstance(position.artifacts, list) and isinstance(position.offset, int) and position.offset >= 0
    return position if is_position and all(isinstance(x, str) for x in texts + position.artifacts) else None


def write_position(run_dir: Path, tracking_uri: str, position: Position) -> None:
    """Store `position` for `tracking_uri`, leaving the other entries. Raises OSError where that cannot be written."""
    entries = _read(run_dir) | {without_credentials(tracking_uri): asdict(position)}
    path = run_dir / STATE
    _remove_leftovers(run_dir)
    # The number keeps a running training and a `sync` beside it from writing the same temporary file.
    temporary = path.with_name(f".{STATE}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # through a link in its place another file would be written
    with open(temporary, "x", encoding="utf-8") as file:
        file.write(json.dumps(entries, indent=2) + "\n")
    os.replace(temporary, path)


def _remove_leftovers(run_dir: Path) -> None:
    """The temporary files of processes that were killed."""
    import psutil

    for leftover in run_dir.glob(f".{STATE}.*"):
        number = leftover.name.rpartition(".")[2]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            leftover.unlink(missing_ok=True)


def _read(run_dir: Path) -> dict[str, Any]:
    # A damaged file is as good as none: the run is found again by the identity of its journal.
    path = run_dir / STATE
    if not is_inside(run_dir, path):  # a pipe would be waited for
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}
