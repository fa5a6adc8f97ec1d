"""Optional interfaces of models, callbacks and loggers that the callbacks use, and queries to the Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


@runtime_checkable
class Exhibiting(Protocol):
    """A model that writes exhibits to a folder and returns their paths."""

    def exhibits(self, folder: Path) -> list[Path]: ...


@runtime_checkable
class ExhibitingText(Exhibiting, Protocol):
    """A model whose exhibits may be text only, which is cheap enough for every validation."""

    exhibits_text: bool


@runtime_checkable
class Checking(Protocol):
    """A callback that can refuse a fit before the weights of the networks are read."""

    def check_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check a fit before its networks have weights.

        Args:
            pl_module: Module whose networks may have no values yet (`Network.sketch`).

        Raises:
            ValueError: The fit would fail.
        """
        ...


@runtime_checkable
class RunLogger(Protocol):
    """A logger that stores the files and tags of a run."""

    def log_artifact(self, path: str | Path) -> None: ...

    def set_tags(self, tags: Mapping[str, Any]) -> None: ...


def run_folder(trainer: L.Trainer) -> Path:
    """The run folder as an absolute path, because a logger may resolve relative paths differently."""
    return Path(trainer.default_root_dir).resolve()


def divides_weights(trainer: L.Trainer) -> bool:
    """Whether each rank has only a part of the weights, so that rank 0 alone cannot use them."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def rehearses(trainer: L.Trainer) -> bool:
    """Whether this is a fast_dev_run, which writes no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # Lightning does not declare it


def log_artifacts(trainer: L.Trainer, paths: list[Path]) -> None:
    """Pass files to every logger that stores files. Warns if a logger refuses one."""
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            for path in paths:
                try:
                    logger.log_artifact(path)
                except (ValueError, OSError) as error:
                    rank_zero_warn(f"{path} was not logged: {error}")
