"""Base of all DataModules: defaults for every attribute and method that modules, callbacks and commands use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from lightning_nlf.batch import Batch, Workload


class SourceDataModule(L.LightningDataModule):
    """Defaults for every attribute and method of a DataModule that a run uses.

    Attributes:
        counters: cost of the run so far by name, summed over all ranks; logged.
        statistics: metrics of the last epoch's rows by name, averaged over all ranks; logged as `train/<name>`.
        speaks: whether a step is a token, as in language tasks.
        recorded: name of the file for `records`, without its extension. None: a prediction file has one episode per
            line.
        exhibits_text: whether `exhibits` writes only text, which is fast.
        rows_per_batch, tokens_per_batch: maximum number of rows and of tokens that a network reads at once; None = no
            limit.
        rows_are_given: whether the training rows exist before the model acts, for example in a file.
        solved: the validation return at which the task counts as solved and the fit ends; None = the fit does not end
            early.
    """

    trainer: L.Trainer  # set by Lightning before it needs a loader
    speaks = False
    recorded: str | None = None
    exhibits_text = False
    tokenizer: Any = None
    rows_per_batch: int | None = None
    tokens_per_batch: int | None = None
    rows_are_given = False
    solved: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self.counters: dict[str, int] = {"iteration": 0}
        self.statistics: dict[str, float] = {}

    @property
    def vocabulary(self) -> int | None:
        """The minimum vocabulary size of a policy, in token ids; None if the data has no tokens."""
        return None if self.tokenizer is None else self.tokenizer.size

    @property
    def sizes(self) -> dict[str, int]:
        """Defaults for sizes that a network does not set: `obs_dim`, `action_dim`, `vocabulary` and `context`."""
        return {}

    @classmethod
    def arguments_beside(cls, folder: str) -> dict[str, Any]:
        """Defaults for arguments of `__init__` if the model is in Hugging Face layout, in the form of a configuration.

        Args: folder: the model's folder, or its id on the hub.
        """
        return {}

    def arguments(self) -> dict[str, Any]:
        """Values chosen for arguments of `__init__` that were left out; the run's configuration records them."""
        return {}

    @property
    def longest_row(self) -> int | None:
        """Number of tokens in the longest row that a network must read; available after `setup`."""
        return None

    @property
    def stops(self) -> Sequence[int]:
        """The token ids that end a reply, eos first."""
        return ()

    @property
    def tokenizer_digest(self) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.digest

    @property
    def unpaid(self) -> bool:
        """Whether replies are sampled and nothing scores them; available after `setup`."""
        return False

    @property
    def workload(self) -> Workload | None:
        """The work of one iteration of a language task; available after `setup`."""
        return None

    @property
    def data_digest(self) -> str | None:
        return None

    def records(self, batch: Batch) -> list[dict[str, Any]]:
        """The lines of the prediction file for a predicted batch, as JSON objects."""
        return []

    def final_metrics(self, iteration: int | None = None) -> dict[str, float]:
        """Metrics that exist only at the end of a fit, by name, over all ranks; logged. Called on every rank."""
        return {}

    def exhibits(self, folder: Path) -> list[Path]:
        """Write files for people into `folder`, such as a GIF of an episode or a transcript, and return their paths."""
        return []
