"""What a run shows of itself: its counters beside its metrics, a learning curve, and what data and model exhibit."""

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
from lightning_nlf.callbacks.protocols import Exhibiting, ExhibitingText, log_artifacts, rehearses, run_folder
from lightning_nlf.data_source import data_source
from lightning_nlf.numbers import NonNegative

LEAST_SHARE = 50  # rendering takes at most one part in so many of the time


class Exhibits(Beginning):
    """Logs the DataModule's counters and statistics, and keeps `<run>/exhibits` for people to look at.

    The counters are logged at the step under which Lightning logs that iteration's metrics, so that a validation can
    be drawn against environment steps. Exhibits are made at the end of a fit, also of one that failed, and at a
    validation if there are none yet of the last `every_seconds`; those that are text, at every validation. One that
    fails is a warning. A prediction writes one line an episode to `<run>/predictions/episodes.jsonl`, or what the
    DataModule records, and the exhibits beside it.

    Of replies there are `val_replies.png` and `test_replies.png`, what those that were sampled in the last evaluation
    earned, of `validate` and `test` too; and of a fit, where the objective has a reference, `overoptimization.png`, the
    rewards of its validations by their KL.

    Raises:
        ValueError: `every_seconds` is negative.
    """

    def __init__(self, every_seconds: NonNegative = 60.0) -> None:
        if every_seconds < 0:
            raise ValueError(f"every_seconds: got {every_seconds}, must not be negative")
        self.every_seconds = every_seconds
        self.history = History()
        self._replies: Numbers = {}  # of the last evaluation, this rank's
        self._logged = -1  # the step at which counters were last logged
        self._due = 0.0  # when the next exhibits are
        self._failed: set[str] = set()  # said once each

    # ---- numbers

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._due, self._logged = time.monotonic() + self.every_seconds, -1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._show_replies(trainer, "val")
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        metrics = trainer.callback_metrics  # on every rank: what is not computed yet may be a collective
        if not trainer.is_global_zero:
            return
        self._log(trainer, {})
        for name in ("val/return", *COURSE.values()):
            if name in metrics:
                self.history.append(name, self._cost(trainer), float(metrics[name]))
        if time.monotonic() >= self._due:
            self._exhibit(trainer)
        elif not rehearses(trainer):
            log_artifacts(trainer, self._shown(trainer, run_folder(trainer) / "exhibits", text_only=True))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        statistics = data_source(trainer).statistics
        self._log(trainer, {f"train/{name}": value for name, value in statistics.items()})
        if "return" in statistics:
            self.history.append("train", self._cost(trainer), statistics["return"])

    def _log(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        step = max(trainer.global_step - 1, 0)  # that of Lightning's own metrics, which counts from 0
        if step != self._logged:  # a validation and the end of its iteration share a step
            metrics = data_source(trainer).counters | metrics
            self._logged = step
        if metrics:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)

    def _cost(self, trainer: L.Trainer) -> int:
        """What the run had cost so far, in the history's unit."""
        steps = data_source(trainer).counters.get("env_steps")
        of_steps = "tokens" if data_source(trainer).speaks else "environment steps"
        self.history.unit = "optimizer steps" if steps is None else of_steps
        return trainer.global_step if steps is None else steps

    # ---- pictures

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        source, best = data_source(trainer), best_of(trainer)
        last = any(isinstance(each, HuggingFaceExport) and each.which == "last" for each in trainer.callbacks)  # type: ignore[attr-defined]
        try:
            if source.speaks and best is not None and not last:  # as people and judges compare what is exported
                with best_weights(pl_module, best) as iteration:
                    metrics = source.final_metrics(iteration.number)
            else:
                metrics = source.final_metrics()
        # Whatever it was, a training that is over is worth more.
        except Exception as error:
            self._warn("the last metrics of the fit", error)
        else:
            if metrics and trainer.is_global_zero:
                self._log(trainer, metrics)
        self._exhibit(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit" and self._began:
            self._exhibit(trainer)

    def _exhibit(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero or rehearses(trainer):
            return
        began, folder = time.monotonic(), run_folder(trainer) / "exhibits"
        paths = self._curves(folder) + self._drawn_replies(folder, "val") + self._shown(trainer, folder)
        log_artifacts(trainer, paths)
        now = time.monotonic()
        self._due = now + max(self.every_seconds, LEAST_SHARE * (now - began))

    def _curves(self, folder: Path) -> list[Path]:
        title, paths, course = folder.parent.name, [], course_of(self.history)
        if self.history.points:
            paths += self._drawn("the learning curve", draw, self.history, folder / "learning_curve.png", title)
        if course["cost"]:
            path, unit = folder / "overoptimization.png", self.history.unit
            paths += self._drawn("the rewards by KL", draw_course, course, unit, path, title)
        return paths

    def _drawn_replies(self, folder: Path, stage: str) -> list[Path]:
        if not self._replies:
            return []
        path, title = folder / f"{stage}_replies.png", f"{folder.parent.name}, {stage}"
        return self._drawn("the rewards of replies", draw_replies, self._replies, path, title)

    def _drawn(self, what: str, drawing: Callable[..., Path], *args: Any) -> list[Path]:
        try:
            return [drawing(*args)]
        # Whatever goes wrong in drawing, a picture is not worth a run.
        except Exception as error:
            return self._warn(what, error)

    def _shown(self, trainer: L.Trainer, folder: Path, text_only: bool = False) -> list[Path]:
        source, model, paths = data_source(trainer), trainer.lightning_module, []
        exhibitors: dict[str, Exhibiting] = {}
        if source.exhibits_text or not text_only:
            exhibitors["the DataModule's exhibits"] = source
        if isinstance(model, Exhibiting) and (
            not text_only or isinstance(model, ExhibitingText) and model.exhibits_text
        ):
            exhibitors["the model's exhibits"] = model
        for what, exhibitor in exhibitors.items():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                paths += exhibitor.exhibits(folder)
            # A renderer may fail in any way its libraries know, and a picture is not worth a run.
            except Exception as error:
                self._warn(what, error)
        with suppress(OSError):
            folder.rmdir()  # only where nothing was written
        return paths

    def _warn(self, what: str, error: Exception) -> list[Path]:
        if what not in self._failed:
            self._failed.add(what)
            rank_zero_warn(f"{what} could not be made: {type(error).__name__}: {error}")
        return []

    # ---- replies of an evaluation

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: object, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if acting(dataloader_idx) == "sampled" and isinstance(batch, Batch):
            before = self._replies if batch_idx else {}
            self._replies = {name: before.get(name, []) + own for name, own in numbers_of(batch).items()}

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
            source, who = data_source(trainer), acting(dataloader_idx)
            records = episodes(outputs, who) if source.recorded is None else source.records(outputs)
            with open(self._episodes(trainer), "a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            path = self._episodes(trainer)
            log_artifacts(trainer, [path, *self._shown(trainer, path.parent)])

    def _episodes(self, trainer: L.Trainer) -> Path:
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        name = data_source(trainer).recorded or "episodes"
        return run_folder(trainer) / "predictions" / f"{name}{rank}.jsonl"

    # ---- checkpoint

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.load_state_dict(state_dict["history"])
