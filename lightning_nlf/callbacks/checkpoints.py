"""`checkpoints/last.ckpt` and `checkpoints/best.ckpt` of a run folder, each one file that is overwritten in place."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_nlf.callbacks.protocols import RunLogger, log_artifacts, rehearses, run_folder
from lightning_nlf.numbers import Size


class _InPlaceCheckpoint(ModelCheckpoint):
    """One file in `<run>/checkpoints`, saved at the end of an iteration; its digest goes to the logger."""

    def __init__(self, filename: str, **kwargs: Any) -> None:
        super().__init__(
            filename=filename, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False, **kwargs
        )
        self._began = False  # training; a resume may be refused before

    @property
    def path(self) -> Path:
        """The file, once a Trainer has called `setup`."""
        assert self.dirpath is not None
        return Path(self.dirpath) / f"{self.filename}{self.FILE_EXTENSION}"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Not super(): that prefers the logger's folder, and warns of a folder with files, as every resumed run has.
        self.dirpath = trainer.strategy.broadcast(str(run_folder(trainer) / "checkpoints"))
        self._fs = get_filesystem(self.dirpath)
        self._began = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._announce(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # A resume that is refused says nothing: the files are those of a run that may have ended well.
        if trainer.state.fn == "fit" and self._began:
            self._announce(trainer)

    def _announce(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero or rehearses(trainer) or self.dirpath is None or not self.path.exists():
            return
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.set_tags({f"checkpoint/{self.filename}_sha256": digest})
        log_artifacts(trainer, [self.path])


class LastCheckpoint(_InPlaceCheckpoint):
    """`last.ckpt`, after every `every_n_iterations` training epochs and at the end of fit.

    Nothing is written in an iteration that raised or was stopped half way (max_steps, max_time): the file is what a
    whole iteration left, from which a resume is exact. Only where there is no file yet, half an iteration is better.

    Raises:
        ValueError: `every_n_iterations` is below 1.
    """

    def __init__(self, every_n_iterations: Size = 1) -> None:
        if every_n_iterations < 1:
            raise ValueError(f"every_n_iterations: got {every_n_iterations}, must be at least 1")
        super().__init__("last", every_n_epochs=every_n_iterations)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self._every_n_epochs == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if self._should_skip_saving_checkpoint(trainer):
            return
        # Lightning ends the epoch of a stop half way like any other. One decision for all ranks: saving is collective.
        if trainer.strategy.broadcast(trainer.is_last_batch or not self.path.exists()):
            self.last_model_path = str(self.path)
            self._save_checkpoint(trainer, str(self.path))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the file is where the run folder is."""


class BestCheckpoint(_InPlaceCheckpoint):
    """`best.ckpt`: the iteration with the best `monitor`; where that is equal, the better `tie_break`; then the first.

    Judged after a validation, saved at the end of that iteration.

    Args:
        monitor: a metric of the validation.
        mode: "max" or "min", of both metrics.
        tie_break: decides between equal values of `monitor`, which the highest possible return often is.

    Raises:
        ValueError: after a validation there is no metric `monitor`.
    """

    def __init__(
        self, monitor: str = "val/return", mode: str = "max", tie_break: str | None = "val/return_sampled"
    ) -> None:
        super().__init__("best", monitor=monitor, mode=mode)
        self.tie_break = tie_break
        self.best_scores: tuple[float, float] | None = None  # monitor, tie break
        self._due = False  # judged the best, not yet in the file

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Judged here, before any checkpoint of this iteration is written: else `last`, when listed first, would hold
        # the score of the best before, and a run resumed from it would overwrite `best` with something worse.
        if self._should_skip_saving_checkpoint(trainer):
            return
        scores = self._scores(trainer)
        better = scores is not None and (self.best_scores is None or scores > self.best_scores)
        # One decision for all ranks, should their metrics differ: saving is something they do together.
        if trainer.strategy.reduce_boolean_decision(better):
            self.best_scores, self._due = scores, True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # The process ended between `last` and `best` of one iteration: what was loaded is the best.
        if self._due:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._due:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        assert self.best_scores is not None
        self._due = False
        self.best_model_path = str(self.path)
        self.best_model_score = self.current_score = self._signed(self.best_scores[0])
        self._save_checkpoint(trainer, str(self.path))

    def _scores(self, trainer: L.Trainer) -> tuple[float, float] | None:
        """Higher is better in both. None where `monitor` is NaN."""
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ValueError(
                f"BestCheckpoint: monitor {self.monitor!r} is no metric of this validation; there is {sorted(metrics)}"
            )
        first = float(self._signed(metrics[self.monitor]))
        second = metrics.get(self.tie_break) if self.tie_break else None
        tie = -math.inf if second is None else float(self._signed(second))
        return None if math.isnan(first) else (first, -math.inf if math.isnan(tie) else tie)

    def _signed(self, x: Any) -> Any:
        return x if self.mode == "max" else -x

    def state_dict(self) -> dict[str, Any]:
        return {"scores": None if self.best_scores is None else list(self.best_scores), "due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run that goes on in another folder has no `best` there: the first validation writes one.
        scores, due = state_dict["scores"], state_dict["due"]
        if scores is not None and (due or self.path.exists()):
            self.best_scores, self._due = (scores[0], scores[1]), due
            self.best_model_path = "" if due else str(self.path)
