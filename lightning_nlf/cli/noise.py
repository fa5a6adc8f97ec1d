"""What Lightning says of every run, and that means nothing here."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from lightning_nlf.terminal import printable

ROOT = Path(__file__).parents[2]  # of `lightning_nlf` and `data_modules`
_WARNINGS = (
    r".*does not have many workers.*",  # collection happens in the main process
    r".*`IterableDataset` has `__len__` defined.*",  # there is one worker at most
    r".*The number of training batches .* is smaller than the logging interval.*",  # many short epochs: it adds up
    r".*Checkpoint directory .* exists and is not empty.*",  # the run folder is claimed, or continued on purpose
    r".*isinstance\(treespec, LeafSpec\).*",  # between Lightning and torch
    r".*Total length of `list` across ranks is zero.*",  # nothing is held out
    r".*`is_gradient_checkpointing` is deprecated.*",  # peft asks transformers for it
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
    "`Trainer.fit` stopped: `max_epochs",  # the summary says it
    "Loaded model weights from the checkpoint",
    "`weights_only` was not set",
    "Initializing distributed",  # and the rest of this banner
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
    """Leave these out; everything else still comes, without what a text of a file could do to a terminal."""
    _show_control_characters()
    for pattern in _WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    # A filter on a logger sees only what is said through that very logger.
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_says_something)


def _show_control_characters() -> None:
    """In warnings, as some say what stands in a file. One of ours is its text alone: it is for the user."""
    form = warnings.formatwarning
    if form.__module__ == __name__:
        return

    def printed(message: Any, category: type[Warning], filename: str, *args: Any, **how: Any) -> str:
        if category is UserWarning and Path(filename).is_relative_to(ROOT) and Path(filename).parent != ROOT:
            return printable(f"warning: {message}\n")
        return printable(form(message, category, filename, *args, **how))

    warnings.formatwarning = printed


def _says_something(record: logging.LogRecord) -> bool:
    message = printable(record.getMessage())
    record.msg, record.args = message, ()
    return not any(part in message for part in _MESSAGES)
