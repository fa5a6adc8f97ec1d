"""The end of a fit that has reached its goal."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_nlf.callbacks.monitors import refuse_unknown_monitor
from lightning_nlf.callbacks.protocols import rehearses
from lightning_nlf.numbers import Number, Size


class StopWhenSolved(L.Callback):
    """Stops the fit when `monitor` was at least `threshold` in `times` validations in a row.

    Args:
        threshold: 950 is the one at which the inverted pendulum counts as solved.
        times: validations in a row; one may be luck.
        monitor: a metric of the validation; higher is better.

    Raises:
        ValueError: `times` is below 1, or a validation logs no `monitor`: before training, where that is known.
    """

    def __init__(self, threshold: Number = 950.0, times: Size = 3, monitor: str = "val/return") -> None:
        if times < 1:
            raise ValueError(f"times: got {times}, must be at least 1")
        self.threshold, self.times, self.monitor = threshold, times, monitor
        self.solved = 0  # validations in a row

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or rehearses(trainer):
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ValueError(
                f"StopWhenSolved: monitor {self.monitor!r} is not among this validation's metrics: {sorted(metrics)}"
            )
        reached = float(metrics[self.monitor]) >= self.threshold
        # One decision for all ranks, should their metrics differ in the last digit.
        reached = trainer.strategy.reduce_boolean_decision(reached)
        self.solved = self.solved + 1 if reached else 0
        self._stop_if_solved(trainer)

    def check_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises ValueError: no validation will log `monitor`."""
        refuse_unknown_monitor("StopWhenSolved", self.monitor, trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check_fit(trainer, pl_module)
        self._stop_if_solved(trainer)  # resumed from where it had stopped

    def _stop_if_solved(self, trainer: L.Trainer) -> None:
        if self.solved >= self.times:
            trainer.should_stop = True
            times = "once" if self.times == 1 else f"{self.solved} times in a row"
            rank_zero_info(f"Solved: {self.monitor} was at least {self.threshold:g}, {times}. The fit stops here.")

    def state_dict(self) -> dict[str, Any]:
        return {"solved": self.solved, "threshold": self.threshold}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Another threshold is another question.
        self.solved = state_dict["solved"] if state_dict["threshold"] == self.threshold else 0
