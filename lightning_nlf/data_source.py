"""What modules and callbacks read from a DataModule, with defaults for the parts that a DataModule lacks."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L

from lightning_nlf.batch import Batch, Workload


class DataSource(Protocol):
    """What modules, callbacks and commands may read from a DataModule. `data_source` returns it for a Trainer.

    Attributes:
        vocabulary: the smallest vocabulary that a policy may have.
        longest_row: tokens in the longest row that a network must read; available after `setup`.
        stops: the token ids that end a reply; the first one is the end of the sequence.
        counters: logged counts of what the run has used so far, by name, over all ranks.
        statistics: figures of the last collection, by name, over all ranks; logged as `train/<name>`.
        speaks: whether a step is a token.
        recorded: name of the file for `records`, without its suffix. None: each episode of a prediction is one line.
        unpaid: whether some sampled replies get no reward; available after `setup`.
        exhibits_text: whether `exhibits` writes only text, which is cheap.
        rows_per_batch, tokens_per_batch: maximum number of rows and of tokens that a network reads at a time; None: no
            limit.
        workload: the workload of one iteration on text; available after `setup`.
        sizes: default sizes of networks, by name: `obs_dim`, `action_dim`, `vocabulary` and `context`.
        rows_are_given: whether the training rows exist before the model acts, such as rows of a file.
        solved: the validation return at which the task counts as solved, so that the fit ends; None: never.
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
    sizes: dict[str, int]
    rows_are_given: bool
    solved: float | None

    def arguments(self) -> dict[str, Any]:
        """The values that were chosen for omitted arguments of `__init__`. The configuration of a run records them."""
        ...

    def records(self, batch: Batch) -> list[dict[str, Any]]:
        """The records of a predicted batch. Each record is written as one line."""
        ...

    def final_metrics(self, iteration: int | None = None) -> dict[str, float]:
        """Metrics that are only available at the end of a fit, by name, over all ranks. Called on every rank.

        Args: iteration: the iteration that the model's current weights come from; None for the last iteration.
        """
        ...

    def exhibits(self, folder: Path) -> list[Path]:
        """Write files for people to look at into `folder`, and return their paths."""
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
    "sizes": {},
    "rows_are_given": True,
    "solved": None,
    "arguments": lambda: {},
    "exhibits": lambda folder: [],
}


class PartialSource:
    """Wrap any DataModule, or None, as a `DataSource`. Missing parts have defaults."""

    def __init__(self, data_module: object) -> None:
        self._data_module = data_module

    @property
    def speaks(self) -> bool:
        return _offers(self._data_module, "speaks") or _offers(self._data_module, "vocabulary")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data_module, name, _NOTHING[name])


def data_source(trainer: L.Trainer) -> DataSource:
    """The Trainer's DataModule, wrapped with defaults if it lacks a part of `DataSource`."""
    return source_of(trainer.datamodule)  # type: ignore[attr-defined]  # set without being declared


def source_of(data_module: object) -> DataSource:
    """A DataModule, wrapped with defaults if it lacks a part of `DataSource`."""
    whole = all(inspect.getattr_static(data_module, name, _NOTHING) is not _NOTHING for name in _NOTHING)
    return cast(DataSource, data_module if whole else PartialSource(data_module))


def _offers(data_module: object, name: str) -> bool:
    """Whether a DataModule has an attribute of this name. Does not evaluate a property."""
    return inspect.getattr_static(data_module, name, None) not in (None, False)
