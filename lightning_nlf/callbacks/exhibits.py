"""Log counters and statistics of the data, and save exhibits of a run: learning curve, pictures, replies, videos."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_nlf.batch import Batch
from lightning_nlf.callbacks.beginning import Beginning
from lightning_nlf.callbacks.best_weights import best_of, best_weights
from lightning_nlf.callbacks.episode_lines import acting, episodes
from lightning_nlf.callbacks.export import HuggingFaceExport
from lightning_nlf.callbacks.pictures import (
    COURSE,
    History,
    Numbers,
    course_of,
    draw,
    draw_course,
    draw_replies,
    numbers_of,
)
from lightning_nlf.callbacks.protocols import (
    Exhibiting,
    ExhibitingText,
    divides_weights,
    log_artifacts,
    rehearses,
    run_folder,
)
from lightning_nlf.data_source import data_source
from lightning_nlf.numbers import NonNegative

LEAST_SHARE = 50  # rendering takes at most 1/50 of the time of a fit


class Exhibits(Beginning):
    """Logs the DataModule's counters and statistics, and saves exhibits in `<run>/exhibits`.

    Counters are logged at the step at which Lightning logs the metrics of the iteration, so that a validation can be
    plotted against environment steps.

    Exhibits are saved at the end of a fit, even if it failed, and after a validation if the last exhibits are older
    than `every_seconds`. Text exhibits are saved after every validation. If an exhibit fails, a warning is printed.

    `predict` writes one line per episode to `<run>/predictions/episodes.jsonl`, or the records of the DataModule, and
    saves the exhibits in the same folder.

    Language runs have three pictures. `val_replies.png` and `test_replies.png` show the rewards of the replies sampled
    in the last evaluation. `overoptimization.png` shows the validation rewards of a fit against the KL divergence, if
    the objective has a reference.

    Raises:
        ValueError: `every_seconds` is negative.
    """

    def __init__(self, every_seconds: NonNegative = 60.0) -> None:
        if every_seconds < 0:
            raise ValueError(f"every_seconds: got {every_seconds}, must be at least 0")
        self.every_seconds = every_seconds
        self.history = History()
        self._replies: Numbers = {}  # numbers of the replies in the last evaluation, on this rank
        self._logged = -1  # the step at which counters were last logged
        self._due = 0.0  # earliest time of the next exhibits
        self._failed: set[str] = set()  # exhibits whose failure has been reported

    # ---- numbers

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._due, self._logged = time.monotonic() + self.every_seconds, -1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._show_replies(trainer, "val")
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        metrics = trainer.callback_metrics  # on every rank, because computing metrics can be collective
        if not trainer.is_global_zero:
            return
        self._log(trainer, {})
        for name in ("val/return", *COURSE.values()):
            if name in metrics:
                self.history.append(name, self._cost(trainer), float(metrics[name]))
        if time.monotonic() >= self._due:
            self._exhibit(trainer)
        elif not rehearses(trainer):
            log_artifacts(trainer, self._make_exhibits(trainer, run_folder(trainer) / "exhibits", text_only=True))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        statistics = data_source(trainer).statistics
        self._log(trainer, {f"train/{name}": value for name, value in statistics.items()})
        if "return" in statistics:
            self.history.append("train", self._cost(trainer), statistics["return"])

    def _log(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        step = max(trainer.global_step - 1, 0)  # Lightning counts the steps of metrics from 0
        if step != self._logged:  # a validation and the end of its iteration have the same step
            metrics = data_source(trainer).counters | metrics
            self._logged = step
        if metrics:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)

    def _cost(self, trainer: L.Trainer) -> int:
        """Cost of the run so far: tokens, environment steps or optimizer steps. Sets the history's unit."""
        steps = data_source(trainer).counters.get("env_steps")
        of_steps = "tokens" if data_source(trainer).speaks else "environment steps"
        self.history.unit = "optimizer steps" if steps is None else of_steps
        return trainer.global_step if steps is None else steps

    # ---- pictures

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not divides_weights(trainer):  # otherwise nothing may be sampled now, because the weights are not gathered
            self._log_final(trainer, pl_module)
        self._exhibit(trainer)

    def _log_final(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        source, best = data_source(trainer), best_of(trainer)
        exports = [callback for callback in trainer.callbacks if isinstance(callback, HuggingFaceExport)]  # type: ignore[attr-defined]
        exports_last = any(callback.weights == "last" for callback in exports)
        try:
            if source.speaks and best is not None and not exports_last:  # measure the weights that will be exported
                with best_weights(pl_module, best) as iteration:
                    metrics = source.final_metrics(iteration.number)
            else:
                metrics = source.final_metrics()
        # An error here must not end a fit that has finished training.
        except Exception as error:
            self._warn("the final metrics of the fit", error)
        else:
            if metrics and trainer.is_global_zero:
                self._log(trainer, metrics)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit" and self._began:
            self._exhibit(trainer)

    def _exhibit(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero or rehearses(trainer):
            return
        began, folder = time.monotonic(), run_folder(trainer) / "exhibits"
        paths = self._curves(folder) + self._drawn_replies(folder, "val") + self._make_exhibits(trainer, folder)
        log_artifacts(trainer, paths)
        now = time.monotonic()
        self._due = now + max(self.every_seconds, LEAST_SHARE * (now - began))

    def _curves(self, folder: Path) -> list[Path]:
        title, paths, course = folder.parent.name, [], course_of(self.history)
        if self.history.points:
            paths += self._draw_safely("the learning curve", draw, self.history, folder / "learning_curve.png", title)
        if course["cost"]:
            path, unit = folder / "overoptimization.png", self.history.unit
            paths += self._draw_safely("the rewards by KL", draw_course, course, unit, path, title)
        return paths

    def _drawn_replies(self, folder: Path, stage: str) -> list[Path]:
        if not self._replies:
            return []
        path, title = folder / f"{stage}_replies.png", f"{folder.parent.name}, {stage}"
        return self._draw_safely("the rewards of replies", draw_replies, self._replies, path, title)

    def _draw_safely(self, subject: str, drawing: Callable[..., Path], *args: Any) -> list[Path]:
        try:
            return [drawing(*args)]
        # A picture that cannot be drawn must not end the run.
        except Exception as error:
            return self._warn(subject, error)

    def _make_exhibits(self, trainer: L.Trainer, folder: Path, text_only: bool = False) -> list[Path]:
        source, model, paths = data_source(trainer), trainer.lightning_module, []
        exhibitors: dict[str, Exhibiting] = {}
        if source.exhibits_text or not text_only:
            exhibitors["the DataModule's exhibits"] = source
        if isinstance(model, Exhibiting) and (
            not text_only or isinstance(model, ExhibitingText) and model.exhibits_text
        ):
            exhibitors["the model's exhibits"] = model
        for subject, exhibitor in exhibitors.items():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                paths += exhibitor.exhibits(folder)
            # A renderer can raise any exception, and must not end the run.
            except Exception as error:
                self._warn(subject, error)
        with suppress(OSError):
            folder.rmdir()  # succeeds only if it is empty
        return paths

    def _warn(self, subject: str, error: Exception) -> list[Path]:
        if subject not in self._failed:
            self._failed.add(subject)
            rank_zero_warn(f"could not make {subject}: {type(error).__name__}: {error}")
        return []

    # ---- replies in an evaluation

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: object, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if acting(dataloader_idx) == "sampled" and isinstance(batch, Batch):
            before = self._replies if batch_idx else {}
            self._replies = {name: before.get(name, []) + values for name, values in numbers_of(batch).items()}

    on_validation_batch_end = on_test_batch_end

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show_replies(trainer, "test")

    def _show_replies(self, trainer: L.Trainer, stage: str) -> None:
        if trainer.is_global_zero and not rehearses(trainer):
            log_artifacts(trainer, self._drawn_replies(run_folder(trainer) / "exhibits", stage))

    # ---- predictions

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = self._episodes(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: object, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if isinstance(outputs, Batch):
            source, mode = data_source(trainer), acting(dataloader_idx)
            records = episodes(outputs, mode) if source.recorded is None else source.records(outputs)
            with open(self._episodes(trainer), "a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            path = self._episodes(trainer)
            log_artifacts(trainer, [path, *self._make_exhibits(trainer, path.parent)])

    def _episodes(self, trainer: L.Trainer) -> Path:
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        name = data_source(trainer).recorded or "episodes"
        return run_folder(trainer) / "predictions" / f"{name}{rank}.jsonl"

    # ---- checkpoint

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.load_state_dict(state_dict["history"])
