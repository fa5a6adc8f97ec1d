"""Stop a fit when it has solved its task."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_nlf.callbacks.monitors import refuse_unknown_monitor
from lightning_nlf.callbacks.protocols import rehearses
from lightning_nlf.numbers import Number, Size


class StopWhenSolved(L.Callback):
    """Stops the fit when `monitor` has reached `threshold` in `times` validations in a row.

    Args:
        threshold: Value of `monitor` to reach. The inverted pendulum counts as solved at 950.
        times: Number of validations in a row, because one good validation may be luck.
        monitor: A validation metric.
        mode: Whether a high ("max") or a low ("min") value is good.

    Raises:
        ValueError: `times` is below 1, or the validation does not log `monitor`. A missing `monitor` is refused before
            training if this is known in advance.
    """

    def __init__(
        self,
        threshold: Number = 950.0,
        times: Size = 3,
        monitor: str = "val/return",
        mode: Literal["max", "min"] = "max",
    ) -> None:
        if times < 1:
            raise ValueError(f"times: got {times}, must be at least 1")
        self.threshold, self.times, self.monitor, self.mode = threshold, times, monitor, mode
        self.solved = 0  # validations in a row that reached the threshold

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or rehearses(trainer):
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ValueError(
                f"StopWhenSolved.monitor: the validation does not log {self.monitor}; "
                f"it logs {', '.join(sorted(metrics)) or 'nothing'}"
            )
        value = float(metrics[self.monitor])
        reached = value >= self.threshold if self.mode == "max" else value <= self.threshold
        # All ranks must decide alike, even if their metrics differ in the last digit.
        reached = trainer.strategy.reduce_boolean_decision(reached)
        self.solved = self.solved + 1 if reached else 0
        self._stop_if_solved(trainer)

    def check_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the monitor before training.

        Raises:
            ValueError: No validation of this fit will log `monitor`.
        """
        refuse_unknown_monitor("StopWhenSolved", self.monitor, trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check_fit(trainer, pl_module)
        self._stop_if_solved(trainer)  # a resumed run may have been solved already

    def _stop_if_solved(self, trainer: L.Trainer) -> None:
        if self.solved >= self.times:
            trainer.should_stop = True
            times = "one validation" if self.times == 1 else f"{self.solved} validations in a row"
            rank_zero_info(f"Solved: {self.monitor} reached {self.threshold:g} in {times}. The fit stops here.")

    def state_dict(self) -> dict[str, Any]:
        return {"solved": self.solved, "threshold": self.threshold}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # With a different threshold, the count starts again.
        self.solved = state_dict["solved"] if state_dict["threshold"] == self.threshold else 0
