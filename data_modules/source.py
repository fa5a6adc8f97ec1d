"""A DataModule's answers to all that a run may ask, before a child says more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from lightning_nlf.batch import Batch, Workload


class SourceDataModule(L.LightningDataModule):
    """Answers whatever modules, callbacks and commands may ask of a DataModule, and offers nothing yet.

    Attributes:
        counters: what the run has cost so far, by name, over all ranks; logged.
        statistics: of the last epoch's rows, by name, over all ranks; logged as `train/<name>`.
        speaks: whether a step is a token.
        recorded: the file, without its ending, that `records` go to; None: a prediction is written an episode a line.
        exhibits_text: whether `exhibits` are text alone, which costs nothing.
        rows_per_batch, tokens_per_batch: what a network reads at a time at most; None: all that it is given.
    """

    trainer: L.Trainer  # Lightning sets it before it asks for a loader
    speaks = False
    recorded: str | None = None
    exhibits_text = False
    tokenizer: Any = None
    rows_per_batch: int | None = None
    tokens_per_batch: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.counters: dict[str, int] = {"iteration": 0}
        self.statistics: dict[str, float] = {}

    @property
    def vocabulary(self) -> int | None:
        """Ids that a policy must have at least."""
        return None if self.tokenizer is None else self.tokenizer.size

    @property
    def longest_row(self) -> int | None:
        """Tokens of the longest row that a network must read; from `setup` on."""
        return None

    @property
    def stops(self) -> Sequence[int]:
        """The ids that end a reply, the end of the sequence first."""
        return ()

    @property
    def tokenizer_digest(self) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.digest

    @property
    def unpaid(self) -> bool:
        """Whether replies are played for which nobody pays; from `setup` on."""
        return False

    @property
    def workload(self) -> Workload | None:
        """Of an iteration of language; from `setup` on."""
        return None

    @property
    def data_digest(self) -> str | None:
        return None

    def records(self, batch: Batch) -> list[dict[str, Any]]:
        """What is written of a predicted batch, a line each."""
        return []

    def final_metrics(self, iteration: int | None = None) -> dict[str, float]:
        """What is known at the end of a fit alone, by name, over all ranks; asked on every rank, and logged."""
        return {}

    def exhibits(self, folder: Path) -> list[Path]:
        """Files for people to look at, written into `folder`: an episode as a GIF, a transcript."""
        return []
