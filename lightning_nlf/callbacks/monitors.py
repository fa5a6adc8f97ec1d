"""Check before training that a validation will log the metric that a callback monitors."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sized

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_nlf.data_source import data_source
from lightning_nlf.objective import Objective

RETURN = "val/return"
NEAR = 0.85  # two names count as similar from this difflib ratio on
EARNED = (RETURN, "val/return_sampled")  # logged only if replies or episodes have rewards


def refuse_unknown_monitor(callback: str, monitor: str, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Refuse a monitor that no validation of this fit will log. Call this after the data is set up and before training.

    The metrics of held-out rows are known in advance. The metrics of played episodes are not, except that no return is
    logged without rewards. Therefore, in a fit that plays episodes and has held-out rows, only a monitor whose name
    resembles a metric of held-out rows is refused.

    Args:
        callback: Name of the callback, for the error message.

    Raises:
        ValueError: No validation of this fit will log `monitor`.
    """
    loaders = _validation_loaders(trainer)  # 1 loader for held-out rows, plus 2 loaders for played episodes
    if not isinstance(pl_module, Objective) or not monitor.startswith("val/"):
        return
    logged = [f"val/{name}" for name in pl_module.held_out_metrics()] if loaders in (1, 3) else []
    if loaders != 1 and not (data_source(trainer).unpaid and monitor in EARNED):
        near = difflib.get_close_matches(monitor, logged, 1, NEAR)
        if near and monitor not in logged:
            raise ValueError(f"{callback}.monitor: the validation does not log {monitor}. Did you mean {near[0]!r}?")
        return
    if loaders == 2:
        raise ValueError(
            f"{callback}.monitor: the validation does not log {monitor}, because replies have no reward or score"
        )
    if logged and monitor not in logged:
        raise ValueError(
            f"{callback}.monitor: the validation does not log {monitor}. For held-out rows it logs {', '.join(logged)}"
        )


def _validation_loaders(trainer: L.Trainer) -> int:
    """Number of validation loaders that are not empty."""
    if trainer.num_val_batches:  # Lightning has already set up the loaders
        return sum(1 for batches in trainer.num_val_batches if batches)
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning does not declare it
    if not trainer.limit_val_batches or data is None or not is_overridden("val_dataloader", data):
        return 0
    loaders = data.val_dataloader()
    every = loaders if isinstance(loaders, list | tuple) else [loaders]
    return sum(1 for loader in every if not isinstance(loader, Sized) or len(loader))


def held_out_loss(trainer: L.Trainer, pl_module: L.LightningModule) -> str | None:
    """Name of the loss of held-out rows in `trainer.callback_metrics`. None if it is missing or NaN."""
    metrics = trainer.callback_metrics
    names = [f"val/{name}" for name in pl_module.held_out_losses] if isinstance(pl_module, Objective) else []
    return next((name for name in names if name in metrics and not math.isnan(metrics[name])), None)


def best_metric(pl_module: L.LightningModule) -> tuple[str, str] | None:
    """The held-out metric by which the objective chooses the best checkpoint, and its mode.

    None without such a metric.
    """
    best = pl_module.best if isinstance(pl_module, Objective) else None
    return None if best is None else (f"val/{best[0]}", best[1])
