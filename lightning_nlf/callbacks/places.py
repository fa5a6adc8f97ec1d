"""Where a run can be looked at."""

from __future__ import annotations

import shlex
from pathlib import Path

import lightning as L

from lightning_nlf.tracking.uris import DATA_BASE, sqlite_path, without_credentials


def stores(trainer: L.Trainer) -> list[str]:
    """Where the run can be looked at: a command for a data base, the address of a server."""
    from lightning_nlf.tracking.logger import MLflowJournalLogger

    return [_look_at(logger.tracking_uri) for logger in trainer.loggers if isinstance(logger, MLflowJournalLogger)]


def _look_at(uri: str) -> str:
    store = sqlite_path(uri)
    if store is None or store.name != DATA_BASE:  # the one name that `ui` looks for
        return without_credentials(uri)
    return shlex.join(["python", "-m", "lightning_nlf.tracking", "ui", str(from_here(store.parent))])


def from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
