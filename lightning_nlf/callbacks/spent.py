"""End a fit when its budgets are spent: environment steps, tokens, optimizer steps, or any other counter."""

from __future__ import annotations

import math
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_nlf.callbacks.protocols import rehearses
from lightning_nlf.callbacks.stopping import StopWhenSolved
from lightning_nlf.data_source import data_source
from lightning_nlf.numbers import NonNegative, Number, Size


class StopWhenSpent(StopWhenSolved):
    """Stops the fit when all `budgets` are spent, or when the task is solved.

    The fit stops at the end of an iteration. If this iteration has no validation, one is added, so that the last
    validation lies at the budget or just after it. This callback replaces the `StopWhenSolved` that a task has by
    default.

    Args:
        budgets: Limit of each counter: the counters of the DataModule, `optimizer_steps` and `iteration`. Empty: the
            fit is only stopped when solved.
        threshold: Value of `monitor` that counts as solved. None: the fit goes on until the budgets are spent.
        in_a_row: Number of validations in a row that must reach the threshold.
        monitor: A validation metric.
        mode: Whether a high ("max") or a low ("min") value is good.

    Raises:
        ValueError: The run has no such counter, or the validation does not log `monitor`.
    """

    def __init__(
        self,
        budgets: dict[str, NonNegative],
        threshold: Number | None = None,
        in_a_row: Size = 1,
        monitor: str = "val/return",
        mode: Literal["max", "min"] = "max",
    ) -> None:
        super().__init__(math.inf if threshold is None else threshold, in_a_row, monitor, mode)
        self.budgets, self.judges = budgets, threshold is not None
        self.ended = False  # whether the validation after the last iteration is done

    def check_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.judges:
            super().check_fit(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = _counts(trainer)
        if missing := sorted(self.budgets.keys() - counts.keys()):
            raise ValueError(
                f"StopWhenSpent.budgets: this run does not count {', '.join(missing)}; it counts {', '.join(counts)}"
            )
        super().on_train_start(trainer, pl_module)
        if self._spent(trainer):  # a resumed run
            if self.ended:
                trainer.should_stop = True
            else:
                validate_next(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.is_last_batch and self._spent(trainer):
            validate_next(trainer)
            trainer.should_stop = True
            counts = _counts(trainer)
            spent = ", ".join(f"{counts[name]:,} {name}" for name in self.budgets)
            rank_zero_info(f"The budget is spent after {spent}. The fit stops here.")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or rehearses(trainer):
            return
        self.ended = trainer.is_last_batch and self._spent(trainer)
        trainer.should_stop = trainer.should_stop or self.ended
        if self.judges:
            super().on_validation_end(trainer, pl_module)

    def _spent(self, trainer: L.Trainer) -> bool:
        counts = _counts(trainer)
        return bool(self.budgets) and all(counts[name] >= limit for name, limit in self.budgets.items())

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"ended": self.ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.ended = state_dict["ended"]


def _counts(trainer: L.Trainer) -> dict[str, int]:
    """What the fit has used so far, by name; during an iteration, the iteration counts."""
    steps = {"iteration": trainer.current_epoch + trainer.is_last_batch, "optimizer_steps": trainer.global_step}
    return steps | data_source(trainer).counters


def validate_next(trainer: L.Trainer) -> None:
    """Make a validation due after the current batch, or after the batch from which a run was resumed."""
    if trainer.check_val_every_n_epoch is not None:
        trainer.check_val_every_n_epoch = 1
    if trainer.val_check_batch is not None and math.isfinite(trainer.val_check_batch):
        trainer.val_check_batch = 1
