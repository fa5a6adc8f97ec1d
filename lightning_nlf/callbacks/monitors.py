"""Metrics that a callback watches: which a validation will log, and a name that none will, refused before training."""

from __future__ import annotations

import math

import lightning as L

from lightning_nlf.data_source import data_source
from lightning_nlf.objective import Objective

RETURN = "val/return"
EARNED = (RETURN, "val/return_sampled")  # logged where somebody pays


def refuse_unknown_monitor(callback: str, monitor: str, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """To be called when training starts, before anything is spent.

    What an evaluation by playing logs depends on what is played, so only held-out rows are known in advance, and that
    nothing is earned where nobody pays.

    Raises:
        ValueError: no validation of this fit will log `monitor`.
    """
    loaders = sum(1 for batches in trainer.num_val_batches if batches)  # rows of a file are one, what is played is two
    if not isinstance(pl_module, Objective) or not monitor.startswith("val/"):
        return
    if loaders != 1 and not (data_source(trainer).unpaid and monitor in EARNED):
        return
    if loaders == 2:
        raise ValueError(f"{callback}.monitor: no validation will log {monitor}: nobody pays for what is played")
    logged = [f"val/{name}" for name in pl_module.held_out_metrics()]
    if logged and monitor not in logged:
        raise ValueError(
            f"{callback}.monitor: no validation will log {monitor}; held-out rows have {', '.join(logged)}"
        )


def held_out_loss(trainer: L.Trainer, pl_module: L.LightningModule) -> str | None:
    """The loss of held-out rows, by its name in `trainer.callback_metrics`; None where no loss of them is a number."""
    metrics = trainer.callback_metrics
    names = [f"val/{name}" for name in pl_module.held_out_losses] if isinstance(pl_module, Objective) else []
    return next((name for name in names if name in metrics and not math.isnan(metrics[name])), None)
