"""What the callbacks ask of a model and of a logger, which may offer none of it, and of the Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


@runtime_checkable
class Exhibiting(Protocol):
    """A model that has something to look at."""

    def exhibits(self, folder: Path) -> list[Path]: ...


@runtime_checkable
class ExhibitingText(Exhibiting, Protocol):
    """One that says whether it is text alone, which costs nothing."""

    exhibits_text: bool


@runtime_checkable
class Checking(Protocol):
    """A callback that may refuse a fit before the weights of its networks are read."""

    def check_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises ValueError: the fit cannot go well.

        Args: pl_module: its networks may be without numbers (`Network.sketch`).
        """
        ...


@runtime_checkable
class RunLogger(Protocol):
    """A logger that keeps files and tags of a run."""

    def log_artifact(self, path: str | Path) -> None: ...

    def set_tags(self, tags: Mapping[str, Any]) -> None: ...


def run_folder(trainer: L.Trainer) -> Path:
    """Absolute: a logger has its own idea of where a relative path begins."""
    return Path(trainer.default_root_dir).resolve()


def rehearses(trainer: L.Trainer) -> bool:
    """Whether this is a fast_dev_run, which leaves no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set without being declared


def log_artifacts(trainer: L.Trainer, paths: list[Path]) -> None:
    """Hands files to each logger that keeps files; one that a logger does not take is a warning."""
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            for path in paths:
                try:
                    logger.log_artifact(path)
                except (ValueError, OSError) as error:
                    rank_zero_warn(f"{path} is not logged: {error}")
