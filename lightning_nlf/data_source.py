"""What a run may ask of its DataModule: one protocol, also for a DataModule that answers a part of it or nothing."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L

from lightning_nlf.batch import Batch, Workload


class DataSource(Protocol):
    """What modules, callbacks and commands may ask of a DataModule; `data_source` gives that of a Trainer.

    Attributes:
        vocabulary: ids that a policy must have at least.
        longest_row: tokens of the longest row that a network must read; from `setup` on.
        stops: the ids that end a reply, the end of the sequence first.
        counters: what the run has cost so far, by name, over all ranks; logged.
        statistics: how the last collection went, by name, over all ranks; logged as `train/<name>`.
        speaks: whether a step is a token.
        recorded: the file, without its ending, that `records` go to; None: a prediction is written an episode a line.
        unpaid: whether replies are played for which nobody pays; from `setup` on.
        exhibits_text: whether `exhibits` are text alone, which costs nothing.
        rows_per_batch, tokens_per_batch: what a network reads at a time at most; None: all that it is given.
        workload: of an iteration of language; from `setup` on.
    """

    vocabulary: int | None
    longest_row: int | None
    tokenizer: object | None
    stops: Sequence[int]
    tokenizer_digest: str | None
    data_digest: str | None
    counters: dict[str, int]
    statistics: dict[str, float]
    speaks: bool
    unpaid: bool
    recorded: str | None
    exhibits_text: bool
    rows_per_batch: int | None
    tokens_per_batch: int | None
    workload: Workload | None

    def records(self, batch: Batch) -> list[dict[str, Any]]:
        """What is written of a predicted batch, a line each."""
        ...

    def final_metrics(self, iteration: int | None = None) -> dict[str, float]:
        """What is known at the end of a fit alone, by name, over all ranks; asked on every rank, and logged.

        Args: iteration: whose weights the model has meanwhile; None where they are the last.
        """
        ...

    def exhibits(self, folder: Path) -> list[Path]:
        """Files for people to look at, written into `folder`."""
        ...


_NOTHING: dict[str, Any] = {
    "vocabulary": None,
    "longest_row": None,
    "tokenizer": None,
    "stops": (),
    "tokenizer_digest": None,
    "data_digest": None,
    "counters": {},
    "statistics": {},
    "speaks": False,
    "unpaid": False,
    "recorded": None,
    "records": lambda batch: [],
    "final_metrics": lambda iteration=None: {},
    "exhibits_text": False,
    "rows_per_batch": None,
    "tokens_per_batch": None,
    "workload": None,
    "exhibits": lambda folder: [],
}


class PartialSource:
    """Somebody else's DataModule, or none: what it offers of a `DataSource`, and nothing for the rest."""

    def __init__(self, data_module: object) -> None:
        self._data_module = data_module

    @property
    def speaks(self) -> bool:
        return _offers(self._data_module, "speaks") or _offers(self._data_module, "vocabulary")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data_module, name, _NOTHING[name])


def data_source(trainer: L.Trainer) -> DataSource:
    """The Trainer's DataModule, completed where it does not answer all that may be asked."""
    data_module = trainer.datamodule  # type: ignore[attr-defined]  # set without being declared
    whole = all(inspect.getattr_static(data_module, name, _NOTHING) is not _NOTHING for name in _NOTHING)
    return cast(DataSource, data_module if whole else PartialSource(data_module))


def _offers(data_module: object, name: str) -> bool:
    """Whether it has something by this name, without computing it."""
    return inspect.getattr_static(data_module, name, None) not in (None, False)
