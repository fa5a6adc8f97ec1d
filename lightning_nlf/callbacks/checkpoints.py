"""`checkpoints/last.ckpt` and `checkpoints/best.ckpt` of a run folder, each one file that is overwritten in place."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_nlf.callbacks.beginning import Beginning
from lightning_nlf.callbacks.monitors import RETURN, held_out_loss, refuse_unknown_monitor
from lightning_nlf.callbacks.protocols import RunLogger, log_artifacts, rehearses, run_folder
from lightning_nlf.data_source import data_source
from lightning_nlf.numbers import Size
from lightning_nlf.private_names import nothing_to_save, save_checkpoint


class _InPlaceCheckpoint(Beginning, ModelCheckpoint):
    """One file in `<run>/checkpoints`, saved at the end of an iteration; its digest goes to the logger."""

    def __init__(self, filename: str, **kwargs: Any) -> None:
        super().__init__(
            filename=filename, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False, **kwargs
        )

    @property
    def path(self) -> Path:
        """The file, once a Trainer has called `setup`."""
        assert self.dirpath is not None
        return self.path_in(Path(self.dirpath).parent)

    def path_in(self, run_dir: Path) -> Path:
        """The file in a run folder."""
        return run_dir / "checkpoints" / f"{self.filename}{self.FILE_EXTENSION}"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Not super(): that prefers the logger's folder, and warns of a folder with files, as every resumed run has.
        self.dirpath = trainer.strategy.broadcast(str(self.path_in(run_folder(trainer)).parent))
        self._began = False

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

    Of an iteration with a validation it is written before that too, so that nothing that fails there takes the
    training with it: a resume goes on with the validation. What fails after the training of an iteration and before
    its end, in a process of its own, leaves the file as well.
    Nothing is written in an iteration that raised or was stopped half way (max_steps, max_time): the file is what a
    whole iteration left, from which a resume is exact. Only where there is no file yet, half an iteration is better.

    Raises:
        ValueError: `every_n_iterations` is below 1.
    """

    def __init__(self, every_n_iterations: Size = 1) -> None:
        if every_n_iterations < 1:
            raise ValueError(f"every_n_iterations: got {every_n_iterations}, must be at least 1")
        super().__init__("last", every_n_epochs=every_n_iterations)
        self.every_n_iterations = every_n_iterations
        self._before_validation = -1  # the optimizer step at which the file was written so

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._before_validation = -1

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # This hook comes after the model's `on_validation_start`, which may have something for the checkpoint.
        due = self._is_due(trainer) or not trainer.strategy.broadcast(self.path.exists())
        if due and not nothing_to_save(self, trainer) and _trained(trainer):
            self._before_validation = trainer.global_step
            trainer.save_checkpoint(str(self.path))  # not as saved at this step: the end of the iteration comes yet

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.validating and self._before_validation == trainer.global_step:
            # Lightning's own layout: as if the first batch of the validation had begun, which a resume then repeats.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress["current"] = dict.fromkeys(progress["current"], 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._is_due(trainer):
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Saving is collective, and nobody knows where the other ranks are. A disk that refused will do so again.
        alone = trainer.world_size == 1 and not isinstance(exception, OSError)
        if alone and self._began and self._before_validation < trainer.global_step and _trained(trainer):
            self._save(trainer)
        super().on_exception(trainer, pl_module, exception)

    def _is_due(self, trainer: L.Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every_n_iterations == 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if nothing_to_save(self, trainer):
            return
        # Lightning ends the epoch of a stop half way like any other. One decision for all ranks: saving is collective.
        if trainer.strategy.broadcast(trainer.is_last_batch or not self.path.exists()):
            self.last_model_path = str(self.path)
            save_checkpoint(self, trainer, str(self.path))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the file is where the run folder is."""


def _trained(trainer: L.Trainer) -> bool:
    """Whether all batches of this iteration are behind us."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch and 0 < progress.current.ready == progress.current.completed


class BestCheckpoint(_InPlaceCheckpoint):
    """`best.ckpt`: the iteration with the best `monitor`; where that is equal, the better `tie_break`; then the first.

    Judged after a validation, saved at the end of that iteration. It is for use: without the state of the optimizer,
    which is twice the size of what trains. A fit goes on from last.ckpt.

    Args:
        monitor: a metric of the validation. By default the return of what is played, or where nothing is played the
            loss of held-out rows, of which the least is the best.
        mode: "max" or "min", of both metrics; by default "max".
        tie_break: decides between equal values of `monitor`, which the highest possible return often is.
        optimizer: whether its state is in the file too, so that a fit can go on from the best.

    Raises:
        ValueError: a validation logs no `monitor` that was named: before training, where that is known.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        tie_break: str | None = f"{RETURN}_sampled",
        optimizer: bool = False,
    ) -> None:
        super().__init__("best", monitor=monitor or RETURN, mode=mode)
        self.optimizer, self._saving = optimizer, False
        self.tie_break = tie_break
        self.best_scores: tuple[float, float] | None = None  # monitor, tie break
        self._named = monitor is not None
        self._asked: tuple[str, str] = (monitor or RETURN, mode)
        self._watched: tuple[str, str] = self._asked  # the metric of the scores, and its mode
        self._due = False  # judged the best, not yet in the file
        self._without = False  # it was said that there is no best

    @property
    def best_value(self) -> str:
        """The monitor and its best value, such as `val/return 0.5`."""
        value = "" if self.best_scores is None else f" {float(self._signed(self.best_scores[0])):.4g}"
        return f"{self._watched[0]}{value}"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Judged here, before any checkpoint of this iteration is written: else `last`, when listed first, would hold
        # the score of the best before, and a run resumed from it would overwrite `best` with something worse.
        if nothing_to_save(self, trainer):
            return
        self._watch(trainer, pl_module)
        scores = self._scores(trainer)
        better = scores is not None and (self.best_scores is None or scores > self.best_scores)
        # One decision for all ranks, should their metrics differ: saving is something they do together.
        if trainer.strategy.reduce_boolean_decision(better):
            self.best_scores, self._due = scores, True

    def check_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises ValueError: no validation will log the `monitor` that was named."""
        if self._named:
            refuse_unknown_monitor("BestCheckpoint", self._asked[0], trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check_fit(trainer, pl_module)
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
        self._saving = True
        try:
            save_checkpoint(self, trainer, str(self.path))
        finally:
            self._saving = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._saving and not self.optimizer:  # else it is another callback's file
            del checkpoint["optimizer_states"]

    def _watch(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what the scores are of."""
        metrics, watched = trainer.callback_metrics, self._asked
        if watched[0] not in metrics:
            text = f"BestCheckpoint: monitor {watched[0]!r} is not among this validation's metrics: {sorted(metrics)}"
            if self._named:
                raise ValueError(text)
            loss = held_out_loss(trainer, pl_module)
            if loss is None and data_source(trainer).unpaid:  # expected, and said once
                if not self._without:
                    rank_zero_info("Nobody scores replies, so no iteration is the best: there is no best.ckpt.")
                self._without = True
            elif loss is None:
                rank_zero_warn(f"{text}. Without a `monitor` there is no best.ckpt")
            else:
                watched = loss, "min"
        # Scores of another metric say nothing, and those of a file that somebody deleted as little.
        if watched != self._watched or (self.best_model_path and not self.path.exists()):
            self._watched, self.best_scores = watched, None

    def _scores(self, trainer: L.Trainer) -> tuple[float, float] | None:
        """Higher is better in both. None where `monitor` is NaN or not there."""
        named = (self._watched[0], self.tie_break or "")
        first, tie = (float(self._signed(trainer.callback_metrics.get(name, math.nan))) for name in named)
        return None if math.isnan(first) else (first, -math.inf if math.isnan(tie) else tie)

    def _signed(self, x: Any) -> Any:
        return x if self._watched[1] == "max" else -x

    def state_dict(self) -> dict[str, Any]:
        scores = None if self.best_scores is None else list(self.best_scores)
        return {"scores": scores, "due": self._due, "watched": list(self._watched)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run that goes on in another folder has no `best` there: the first validation writes one.
        scores, due = state_dict["scores"], state_dict["due"]
        name, mode = state_dict.get("watched", self._watched)
        self._watched = name, mode
        if scores is not None and (due or self.path.exists()):
            self.best_scores, self._due = (scores[0], scores[1]), due
            self.best_model_path = "" if due else str(self.path)
