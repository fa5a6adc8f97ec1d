"""Filters for warnings and log messages that say nothing about the run."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from lightning_nlf.terminal import printable

ROOT = Path(__file__).parents[2]  # folder that contains `lightning_nlf` and `data_modules`
_WARNINGS = (
    r".*does not have many workers.*",  # the main process collects data
    r".*`IterableDataset` has `__len__` defined.*",  # at most one worker is used
    r".*The number of training batches .* is smaller than the logging interval.*",  # epochs are short and many
    r".*Checkpoint directory .* exists and is not empty.*",  # run folders are new, or are resumed on purpose
    r".*isinstance\(treespec, LeafSpec\).*",  # a call of Lightning to torch
    r".*Total length of `list` across ranks is zero.*",  # a run without held-out rows
    r".*It is recommended to use `self.log\('(train|val|test)/.*sync_dist=True.*",  # already summed over ranks
    r".*`is_gradient_checkpointing` is deprecated.*",  # a call of peft to transformers
    r".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing changes values in place
    r".*You are using `torch.load` with `weights_only=False`.*",
)
_MESSAGES = (
    "litlogger",
    "litmodels",
    "GPU available: False",
    "TPU available: False",
    "HPU available: False",
    "Restoring states from the checkpoint path",
    "Restored all states from the checkpoint",
    "`Trainer.fit` stopped: `max_epochs",  # the summary of the run repeats it
    "Loaded model weights from the checkpoint",
    "`weights_only` was not set",
    "Initializing distributed",  # this and the next three are one banner
    "distributed_backend=",
    "All distributed processes registered",
    "-" * 100,
)
_LOGGERS = (
    "lightning.pytorch",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
)


def silence() -> None:
    """Filter these messages out, and escape control characters in all other messages."""
    _show_control_characters()
    for pattern in _WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    # A filter on a logger does not apply to its children.
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_worth_printing)


def _show_control_characters() -> None:
    """Escape control characters in warnings, because a warning can quote a file.

    Print our own warnings without file and line.
    """
    form = warnings.formatwarning
    if form.__module__ == __name__:
        return

    def printable_warning(message: Any, category: type[Warning], filename: str, *args: Any, **options: Any) -> str:
        if category is UserWarning and Path(filename).is_relative_to(ROOT) and Path(filename).parent != ROOT:
            return printable(f"warning: {message}\n")
        return printable(form(message, category, filename, *args, **options))

    warnings.formatwarning = printable_warning


def _worth_printing(record: logging.LogRecord) -> bool:
    message = printable(record.getMessage())
    record.msg, record.args = message, ()
    return not any(part in message for part in _MESSAGES)
