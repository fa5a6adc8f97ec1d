"""Where the records of a run are sent, and how many have arrived: `<run folder>/mlflow.json`.

    {"http://127.0.0.1:5000": {"journal": "…", "experiment_id": "1", "run_id": "…", "offset": 8192, "artifacts": []}}

The file has one entry per tracking URI, so that a run can be sent to several servers. The file is replaced atomically.
If the process is killed, the old entry can remain. Records are then sent twice, which is harmless because of MLflow's
primary key.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_nlf.tracking.artifacts import is_inside
from lightning_nlf.tracking.uris import DATABASE, sqlite_uri, without_credentials

STATE = "mlflow.json"
OUTPUTS = "outputs"  # name of the folder of all runs


@dataclass
class Position:
    """The MLflow run of a journal on one server, and how far it has been sent.

    Attributes:
        journal: Identity of the journal.
        offset: Byte of the journal up to which all records have arrived.
        artifacts: Artifacts that the journal names before this byte, and that have not arrived.
    """

    journal: str
    experiment_id: str
    run_id: str
    offset: int = 0
    artifacts: list[str] = field(default_factory=list)


def resolve_tracking_uri(run_dir: Path, tracking_uri: str | None = None) -> str:
    """The tracking URI: the argument, else `MLFLOW_TRACKING_URI`, else that of `mlflow.db` in the folder of runs."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(run_dir)


def default_tracking_uri(run_dir: Path) -> str:
    """Tracking URI of `mlflow.db` in the folder of runs."""
    return sqlite_uri(folder_of_runs(run_dir) / DATABASE)


def folder_of_runs(run_dir: Path) -> Path:
    """The nearest folder above the run folder with the name `outputs`, otherwise the parent of the run folder."""
    above = run_dir.resolve().parents
    return next((folder for folder in above if folder.name == OUTPUTS), above[0])


def default_run_name(run_dir: Path) -> str:
    """Name of a run: the path of its folder below the folder of runs, such as `chat/sft-seed0`."""
    return run_dir.resolve().relative_to(folder_of_runs(run_dir)).as_posix()


def read_position(run_dir: Path, tracking_uri: str) -> Position | None:
    """The stored position for `tracking_uri`; None if no position is stored or the file is damaged."""
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
    """Store `position` for `tracking_uri`, and keep the other entries. Raises OSError if the file cannot be written."""
    entries = _read(run_dir) | {without_credentials(tracking_uri): asdict(position)}
    path = run_dir / STATE
    _remove_leftovers(run_dir)
    # With the process id, a running fit and a simultaneous `sync` do not write the same temporary file.
    temporary = path.with_name(f".{STATE}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # a link with this name would redirect the write to another file
    with open(temporary, "x", encoding="utf-8") as file:
        file.write(json.dumps(entries, indent=2) + "\n")
    os.replace(temporary, path)


def _remove_leftovers(run_dir: Path) -> None:
    """Delete temporary files of killed processes."""
    import psutil

    for leftover in run_dir.glob(f".{STATE}.*"):
        number = leftover.name.rpartition(".")[2]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            leftover.unlink(missing_ok=True)


def _read(run_dir: Path) -> dict[str, Any]:
    # A damaged file counts as missing, because the run can be found by the identity of its journal.
    path = run_dir / STATE
    if not is_inside(run_dir, path):  # reading a pipe would block
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}
