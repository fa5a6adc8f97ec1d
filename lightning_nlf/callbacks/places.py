"""Commands and addresses for viewing a run in MLflow."""

from __future__ import annotations

import shlex
from pathlib import Path

import lightning as L

from lightning_nlf.tracking.uris import DATABASE, sqlite_path, without_credentials


def stores(trainer: L.Trainer) -> list[str]:
    """How to view a run in MLflow: the command that opens the database, or the address of the server."""
    from lightning_nlf.tracking.logger import MLflowJournalLogger

    return [_look_at(logger.tracking_uri) for logger in trainer.loggers if isinstance(logger, MLflowJournalLogger)]


def _look_at(uri: str) -> str:
    store = sqlite_path(uri)
    if store is None or store.name != DATABASE:  # `ui` opens only this file name
        return without_credentials(uri)
    return shlex.join(["python", "-m", "lightning_nlf.tracking", "ui", str(relative_to_cwd(store.parent))])


def relative_to_cwd(path: Path) -> Path:
    cwd = Path.cwd()
    return path.relative_to(cwd) if path.is_relative_to(cwd) else path
