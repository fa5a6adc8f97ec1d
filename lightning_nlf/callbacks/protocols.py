"""What the callbacks ask of a DataModule and of a logger. Either may offer none of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_nlf.batch import Batch


@runtime_checkable
class Collecting(Protocol):
    """A DataModule that knows what its collections cost and how the last one went."""

    counters: dict[str, int]
    statistics: dict[str, float]


@runtime_checkable
class Exhibiting(Protocol):
    """A DataModule or a model that has something to look at: text, if it says `exhibits_text`, else pictures too."""

    def exhibits(self, folder: Path) -> list[Path]: ...


@runtime_checkable
class Recording(Protocol):
    """A DataModule that says itself what is written of a predicted batch, a line each, and to which file."""

    recorded: str  # its name, without ending

    def records(self, batch: Batch) -> list[dict[str, Any]]: ...


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


def data_module_of(trainer: L.Trainer) -> object:
    return trainer.datamodule  # type: ignore[attr-defined]  # set without being declared


def counters_of(trainer: L.Trainer) -> dict[str, int]:
    data_module = data_module_of(trainer)
    return data_module.counters if isinstance(data_module, Collecting) else {}


def statistics_of(trainer: L.Trainer) -> dict[str, float]:
    data_module = data_module_of(trainer)
    return data_module.statistics if isinstance(data_module, Collecting) else {}


def speaks(trainer: L.Trainer) -> bool:
    """Whether a step is a token: the DataModule has a vocabulary."""
    return inspect.getattr_static(data_module_of(trainer), "vocabulary", None) is not None  # without computing it


def digests_of(trainer: L.Trainer) -> dict[str, str]:
    """`data_digest` and `tokenizer_digest`, where the DataModule has them."""
    data_module = data_module_of(trainer)
    named = {name: getattr(data_module, name, None) for name in ("data_digest", "tokenizer_digest")}
    return {name: digest for name, digest in named.items() if digest is not None}


def last_step(trainer: L.Trainer) -> int:
    """The number under which Lightning logs the metrics of the step that was just taken: it counts from 0."""
    return max(trainer.global_step - 1, 0)


def log_artifacts(trainer: L.Trainer, paths: list[Path]) -> None:
    """Hands files to each logger that keeps files; one that a logger does not take is a warning."""
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            for path in paths:
                try:
                    logger.log_artifact(path)
                except (ValueError, OSError) as error:
                    rank_zero_warn(f"{path} is not logged: {error}")
