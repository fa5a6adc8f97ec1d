"""One progress bar for a whole fit, and a few plain lines where nobody watches."""

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
from lightning_nlf.callbacks.places import from_here, stores
from lightning_nlf.callbacks.plan import counted, plan
from lightning_nlf.callbacks.protocols import rehearses, run_folder
from lightning_nlf.callbacks.throughput import Throughput
from lightning_nlf.data_source import data_source
from lightning_nlf.numbers import NonNegative

if TYPE_CHECKING:
    from lightning_nlf.callbacks.progress_display import Bar, Lines


class FitProgress(ProgressBar):
    """Iterations done, the returns, the speed and the time left, on rank 0.

    On a terminal it is one bar that is redrawn a few times a second; elsewhere, a line at most every `every_seconds`.
    A fit ends with a short summary, a validation, test or prediction with a table of what it measured.

    Raises:
        ValueError: `every_seconds` is negative.
    """

    def __init__(self, every_seconds: NonNegative = 10.0) -> None:
        super().__init__()
        if every_seconds < 0:
            raise ValueError(f"every_seconds: got {every_seconds}, must not be negative")
        self.every_seconds = every_seconds
        self._enabled = True
        self._display: Bar | Lines | None = None
        self._due = self._began = 0.0
        self._first = 0  # iterations and environment steps at the start: a resumed run has some
        self._first_steps = 0
        self._ended = ""  # the summary, until it is printed
        self._loss: Tensor | None = None
        self._throughput: Throughput | None = None  # of language
        self._metrics: dict[str, float] = {}  # of the last validation or test
        self._returns: dict[str, list[float]] = {}  # of a prediction, by who acted

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        # While a bar is shown, rich puts whatever is printed above it.
        if self._enabled:
            print(*args, **kwargs)

    # ---- fit

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began, self._first = time.monotonic(), trainer.current_epoch
        self._first_steps = data_source(trainer).counters.get("env_steps", 0)
        self._ended, self._loss, self._metrics = "", None, {}
        self._throughput = Throughput() if data_source(trainer).speaks else None
        if self._enabled:
            from lightning_nlf.callbacks.progress_display import Bar, Lines

            name = run_folder(trainer).name
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
        # Only as often as somebody sees it, and without metrics of this epoch: to compute them costs time, and may be a
        # collective that the other ranks would have to join.
        if self._display is not None and time.monotonic() >= self._due:
            self._display.show(trainer.current_epoch + 1, self._standing(trainer))
            self._due = time.monotonic() + self._display.seconds

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close(trainer, "Finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
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
            done, seconds = trainer.current_epoch - self._first, time.monotonic() - self._began
            self._ended = f"{how}: {counted(done, 'iteration')} in {clock(seconds)}" + (
                f"\n  {standing}" if standing else ""
            )

    def _standing(self, trainer: L.Trainer) -> str:
        """Returns, environment steps or tokens, and speed, in one line."""
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
            played = {name for name in validation if f"{name.removesuffix('_sampled')}_sampled" in validation}
            held_out = [name for name in validation if name not in played] or list(validation)
            different = {validation[name]: name for name in reversed(held_out)}  # of equal ones the first
            parts += [f"{name} {value:.4g}" for value, name in reversed(different.items())][:2]
        steps = data_source(trainer).counters.get("env_steps", data_source(trainer).counters.get("tokens"))
        if self._throughput is not None:
            parts += [f"{steps:,} tokens"] if steps else []
            parts += [f"{speed:,.0f} tokens/s {what}" for what, speed in self._throughput.speeds().items()]
        elif steps is not None:
            speed = (steps - self._first_steps) / max(time.monotonic() - self._began, 1e-9)
            parts.append(f"{steps:,} env steps, {speed:,.0f}/s")
        return " · ".join(parts)

    def _summary(self, trainer: L.Trainer) -> None:
        """Last of all, so that it stands below what the other callbacks had to say."""
        if not self._ended:
            return
        lines = [self._ended]
        if not rehearses(trainer):
            folder = from_here(run_folder(trainer))
            lines += [f"run folder: {folder}", *(f"look at it: {where}" for where in stores(trainer))]
            if (changed := folder / "exhibits" / "changed.html").is_file():
                lines.append(f"what changed: {changed}")
                lines.append(f"talk with it: python -m lightning_nlf chat --run_dir {shlex.quote(str(folder))}")
        self.print("\n" + "\n  ".join(lines) + "\n")
        self._ended = ""

    # ---- validate, test, predict

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            trainer.validate_loop.verbose = False  # its table of raw names would come below ours

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
            who = "sampled" if data_source(trainer).recorded is not None else acting(dataloader_idx)
            self._returns.setdefault(who, []).extend(row["return"] for row in episodes(outputs, who))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        means = {f"return, {who}": sum(x) / len(x) for who, x in self._returns.items()}
        self._table("Prediction", means | {f"episodes, {who}": len(x) for who, x in self._returns.items()})
        written = run_folder(trainer) / "predictions"
        if not rehearses(trainer) and written.is_dir():
            self.print("\n".join(f"written: {from_here(path)}" for path in sorted(written.glob("*.jsonl"))))

    def _remember(self, trainer: L.Trainer) -> None:
        self._metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def _table(self, title: str, values: Mapping[str, float]) -> None:
        if self._enabled and values:
            from lightning_nlf.callbacks.progress_display import table

            table(title, values)


def iterations_in_all(trainer: L.Trainer) -> int | None:
    """How many iterations the fit will have, None where it has no end."""
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        return trainer.max_epochs
    if trainer.max_steps > 0 and math.isfinite(trainer.num_training_batches):
        return math.ceil(trainer.max_steps / (trainer.num_training_batches / trainer.accumulate_grad_batches))
    return None
