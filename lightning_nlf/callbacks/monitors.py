"""Metrics that a callback watches: which a validation will log, and a name that none will, refused before training."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sized

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_nlf.data_source import data_source
from lightning_nlf.objective import Objective

RETURN = "val/return"
NEAR = 0.85  # of two names, by difflib's ratio
EARNED = (RETURN, "val/return_sampled")  # logged where somebody pays


def refuse_unknown_monitor(callback: str, monitor: str, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """To be called when training starts, before anything is spent, or earlier, once the data is set up.

    What an evaluation by playing logs depends on what is played, so only held-out rows are known in advance, and that
    nothing is earned where nobody pays. Beside what is played, a name is refused that is nearly one of held-out rows.

    Raises:
        ValueError: no validation of this fit will log `monitor`.
    """
    loaders = _validation_loaders(trainer)  # rows of a file are one, what is played is two
    if not isinstance(pl_module, Objective) or not monitor.startswith("val/"):
        return
    logged = [f"val/{name}" for name in pl_module.held_out_metrics()] if loaders in (1, 3) else []
    if loaders != 1 and not (data_source(trainer).unpaid and monitor in EARNED):
        near = difflib.get_close_matches(monitor, logged, 1, NEAR)
        if near and monitor not in logged:
            raise ValueError(f"{callback}.monitor: no validation will log {monitor}. Did you mean {near[0]!r}?")
        return
    if loaders == 2:
        raise ValueError(f"{callback}.monitor: no validation will log {monitor}: nobody pays for what is played")
    if logged and monitor not in logged:
        raise ValueError(
            f"{callback}.monitor: no validation will log {monitor}; held-out rows have {', '.join(logged)}"
        )


def _validation_loaders(trainer: L.Trainer) -> int:
    """How many loaders a validation has that are not empty."""
    if trainer.num_val_batches:  # once Lightning has asked for them
        return sum(1 for batches in trainer.num_val_batches if batches)
    data = trainer.datamodule  # type: ignore[attr-defined]  # set without being declared
    if not trainer.limit_val_batches or data is None or not is_overridden("val_dataloader", data):
        return 0
    loaders = data.val_dataloader()
    every = loaders if isinstance(loaders, list | tuple) else [loaders]
    return sum(1 for each in every if not isinstance(each, Sized) or len(each))


def held_out_loss(trainer: L.Trainer, pl_module: L.LightningModule) -> str | None:
    """The loss of held-out rows, by its name in `trainer.callback_metrics`; None where no loss of them is a number."""
    metrics = trainer.callback_metrics
    names = [f"val/{name}" for name in pl_module.held_out_losses] if isinstance(pl_module, Objective) else []
    return next((name for name in names if name in metrics and not math.isnan(metrics[name])), None)
