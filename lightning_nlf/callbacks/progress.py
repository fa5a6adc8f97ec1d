"""Progress of a fit: one bar on a terminal, or a few plain lines in a log."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.callbacks.episode_lines import acting, episodes
from lightning_nlf.callbacks.monitors import best_metric
from lightning_nlf.callbacks.places import relative_to_cwd, stores
from lightning_nlf.callbacks.plan import counted, plan
from lightning_nlf.callbacks.protocols import rehearses, run_folder
from lightning_nlf.callbacks.throughput import Throughput
from lightning_nlf.data_source import data_source
from lightning_nlf.numbers import NonNegative
from lightning_nlf.tracking.position import default_run_name

if TYPE_CHECKING:
    from lightning_nlf.callbacks.progress_display import Bar, Lines


class FitProgress(ProgressBar):
    """Prints finished iterations, returns, speed and remaining time, on rank 0.

    On a terminal, the progress is one bar, which is redrawn a few times per second. Elsewhere, a line is printed at
    most every `every_seconds`. A fit ends with a short summary, and `validate`, `test` and `predict` end with a table
    of metrics.

    Raises:
        ValueError: `every_seconds` is negative.
    """

    def __init__(self, every_seconds: NonNegative = 10.0) -> None:
        super().__init__()
        if every_seconds < 0:
            raise ValueError(f"every_seconds: got {every_seconds}, must be at least 0")
        self.every_seconds = every_seconds
        self._enabled = True
        self._display: Bar | Lines | None = None
        self._due = self._began = 0.0
        self._first = 0  # iterations before this process started, if the run was resumed
        self._first_steps = 0  # environment steps before this process started
        self._ended = ""  # the summary, until it is printed
        self._failed_at_once = False  # whether an error ended the fit before an iteration was finished
        self._loss: Tensor | None = None
        self._throughput: Throughput | None = None  # None except for language
        self._metrics: dict[str, float] = {}  # metrics of the last validation or test
        self._returns: dict[str, list[float]] = {}  # returns of a prediction, by policy mode

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        # While the bar is visible, rich prints this line above the bar.
        if self._enabled:
            print(*args, **kwargs)

    # ---- fit

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began, self._first = time.monotonic(), trainer.current_epoch
        self._first_steps = data_source(trainer).counters.get("env_steps", 0)
        self._ended, self._failed_at_once, self._loss, self._metrics = "", False, None, {}
        self._throughput = Throughput() if data_source(trainer).speaks else None
        if self._enabled:
            from lightning_nlf.callbacks.progress_display import Bar, Lines

            name = default_run_name(run_folder(trainer))
            kind = Bar if sys.stdout.isatty() else Lines
            self._display = kind(name, iterations_in_all(trainer), self._first, self.every_seconds)
            self._due = 0.0
            if (line := plan(name, trainer, pl_module)) is not None:
                self.print(line)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._throughput is not None:
            self._throughput.iteration_begins(data_source(trainer).counters.get("env_steps", 0))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: object, batch: Any, batch_idx: int) -> None:
        if self._throughput is not None and batch_idx == 0:
            self._throughput.collection_ends(data_source(trainer).counters.get("env_steps", 0))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: object, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self._throughput is not None and isinstance(batch, Batch):
            self._throughput.batch_ends(batch, trainer.world_size)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Metrics of this epoch are left out: computing them takes time, and may be a collective that needs all ranks.
        if self._display is not None and time.monotonic() >= self._due:
            self._display.show(trainer.current_epoch + 1, self._standing(trainer))
            self._due = time.monotonic() + self._display.seconds

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close(trainer, "Finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._failed_at_once = isinstance(exception, Exception) and trainer.current_epoch == self._first
        self._close(trainer, f"Stopped by {type(exception).__name__}")
        self._summary(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._summary(trainer)

    def _close(self, trainer: L.Trainer, how: str) -> None:
        if self._display is not None:
            from lightning_nlf.callbacks.progress_display import clock

            standing = self._standing(trainer)
            self._display.close(trainer.current_epoch, standing)
            self._display = None
            iterations, seconds = trainer.current_epoch - self._first, time.monotonic() - self._began
            self._ended = f"{how}: {counted(iterations, 'iteration')} in {clock(seconds)}" + (
                f"\n  {standing}" if standing else ""
            )

    def _standing(self, trainer: L.Trainer) -> str:
        """One line with the latest returns or losses, the number of environment steps or tokens, and the speed."""
        parts = []
        collected = data_source(trainer).statistics.get("return")
        if collected is not None:
            parts.append(f"return {collected:,.4g}")
        elif self._loss is not None:
            parts.append(f"loss {float(self._loss):.4g}")
        validation = {name: value for name, value in self._metrics.items() if name.startswith("val/")}
        if "val/return" in validation:
            sampled = f", sampled {validation['val/return_sampled']:,.4g}" if "val/return_sampled" in validation else ""
            parts.append(f"validation {validation['val/return']:,.4g}{sampled}")
        else:
            played_metrics = {name for name in validation if f"{name.removesuffix('_sampled')}_sampled" in validation}
            held_out = [name for name in validation if name not in played_metrics] or list(validation)
            best, _ = best_metric(trainer.lightning_module) or ("", "")
            different: dict[float, str] = {}  # one name for equal values: that of best.ckpt, or else the first
            for name in sorted(held_out, key=lambda name: (math.isnan(validation[name]), name != best)):  # NaN last
                different.setdefault(validation[name], name)
            parts += [f"{name} {value:.4g}" for value, name in different.items()][:2]
        steps = data_source(trainer).counters.get("env_steps", data_source(trainer).counters.get("tokens"))
        if self._throughput is not None:
            parts += [f"{steps:,} tokens"] if steps else []
            parts += [f"{speed:,.0f} tokens/s {kind}" for kind, speed in self._throughput.speeds().items()]
        elif steps is not None:
            speed = (steps - self._first_steps) / max(time.monotonic() - self._began, 1e-9)
            parts.append(f"{steps:,} env steps, {speed:,.0f}/s")
        return " · ".join(parts)

    def _summary(self, trainer: L.Trainer) -> None:
        """Print the summary of a fit.

        Called in `teardown`, so that the summary comes after the output of other callbacks.
        """
        if not self._ended:
            return
        lines = [self._ended]
        if not rehearses(trainer) and not self._failed_at_once:
            folder = relative_to_cwd(run_folder(trainer))
            lines += [f"run folder: {folder}", *(f"view the metrics: {where}" for where in stores(trainer))]
            if (changed := folder / "exhibits" / "changed.html").is_file():
                lines.append(f"replies before and after: {changed}")
                lines.append(f"chat with the policy: python -m lightning_nlf chat --run_dir {shlex.quote(str(folder))}")
        self.print("\n" + "\n  ".join(lines) + "\n")
        self._ended = ""

    # ---- validate, test, predict

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            trainer.validate_loop.verbose = False  # replace Lightning's table with ours

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.test_loop.verbose = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._remember(trainer)
        if trainer.state.fn == "validate":
            self._table("Validation", self._metrics)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._remember(trainer)
        self._table("Test", self._metrics)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._returns = {}

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: object, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if isinstance(outputs, Batch) and outputs.rewards is not None:
            mode = "sampled" if data_source(trainer).recorded is not None else acting(dataloader_idx)
            self._returns.setdefault(mode, []).extend(row["return"] for row in episodes(outputs, mode))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        means = {f"return, {mode}": sum(x) / len(x) for mode, x in self._returns.items()}
        self._table("Prediction", means | {f"episodes, {mode}": len(x) for mode, x in self._returns.items()})
        folder = run_folder(trainer) / "predictions"
        if not rehearses(trainer) and folder.is_dir():
            self.print("\n".join(f"predictions: {relative_to_cwd(path)}" for path in sorted(folder.glob("*.jsonl"))))

    def _remember(self, trainer: L.Trainer) -> None:
        self._metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def _table(self, title: str, values: Mapping[str, float]) -> None:
        if self._enabled and values:
            from lightning_nlf.callbacks.progress_display import table

            table(title, values)


def iterations_in_all(trainer: L.Trainer) -> int | None:
    """Number of iterations of the whole fit; None if it has no limit."""
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        return trainer.max_epochs
    if trainer.max_steps > 0 and math.isfinite(trainer.num_training_batches):
        return math.ceil(trainer.max_steps / (trainer.num_training_batches / trainer.accumulate_grad_batches))
    return None
