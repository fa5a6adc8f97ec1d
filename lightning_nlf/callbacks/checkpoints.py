"""Save `checkpoints/last.ckpt` and `checkpoints/best.ckpt` in the run folder. Each is overwritten in place."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_nlf.callbacks.beginning import Beginning
from lightning_nlf.callbacks.monitors import RETURN, best_metric, held_out_loss, refuse_unknown_monitor
from lightning_nlf.callbacks.protocols import RunLogger, log_artifacts, rehearses, run_folder
from lightning_nlf.data_source import data_source
from lightning_nlf.numbers import Size
from lightning_nlf.private_names import nothing_to_save, save_checkpoint

LOSS = "loss"  # name of a monitor that stands for the loss of held-out rows


class _InPlaceCheckpoint(Beginning, ModelCheckpoint):
    """Saves one file in `<run>/checkpoints` at the end of an iteration, and logs its SHA-256 digest."""

    def __init__(self, filename: str, **kwargs: Any) -> None:
        super().__init__(
            filename=filename, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False, **kwargs
        )

    @property
    def path(self) -> Path:
        """Path of the file. Valid after `setup`."""
        assert self.dirpath is not None
        return self.path_in(Path(self.dirpath).parent)

    def path_in(self, run_dir: Path) -> Path:
        """Path of the file in a given run folder."""
        return run_dir / "checkpoints" / f"{self.filename}{self.FILE_EXTENSION}"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # super() would prefer the logger's folder, and warn about the files that every resumed run has.
        self.dirpath = trainer.strategy.broadcast(str(self.path_in(run_folder(trainer)).parent))
        self._began = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._announce(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # If a resume was refused, the files belong to an earlier run, which may have ended without errors.
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
    """Saves `last.ckpt` after every `every_n_iterations` iterations (training epochs) and at the end of a fit.

    If the iteration has a validation, the file is also saved before the validation, so that no training is lost if the
    validation fails. A resume then continues with the validation. With a single process, the file is also saved when an
    error occurs between the training of an iteration and its end.

    An iteration that fails or stops half way (max_steps, max_time) does not overwrite the file, because a resume is
    exact only from a complete iteration. Such an iteration is saved only if no file exists yet.

    Raises:
        ValueError: `every_n_iterations` is below 1.
    """

    def __init__(self, every_n_iterations: Size = 1) -> None:
        if every_n_iterations < 1:
            raise ValueError(f"every_n_iterations: got {every_n_iterations}, must be at least 1")
        super().__init__("last", every_n_epochs=every_n_iterations)
        self.every_n_iterations = every_n_iterations
        self._before_validation = -1  # the optimizer step at which the file was last saved before a validation

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._before_validation = -1

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # This hook runs after the model's `on_validation_start`, which may change the state to save.
        due = self._is_due(trainer) or not trainer.strategy.broadcast(self.path.exists())
        if due and not nothing_to_save(self, trainer) and _trained(trainer):
            self._before_validation = trainer.global_step
            trainer.save_checkpoint(str(self.path))  # does not mark the step as saved: the iteration has not ended

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.validating and self._before_validation == trainer.global_step:
            # In Lightning's layout, the first validation batch has started, so a resume repeats the validation.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress["current"] = dict.fromkeys(progress["current"], 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._is_due(trainer):
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Saving is collective, but the other ranks may be in other code. After an OSError the disk would fail again.
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
        # Lightning also calls this after an epoch that stopped half way. As saving is collective, rank 0 decides.
        if trainer.strategy.broadcast(trainer.is_last_batch or not self.path.exists()):
            self.last_model_path = str(self.path)
            save_checkpoint(self, trainer, str(self.path))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing, because the path follows from the run folder."""


def _trained(trainer: L.Trainer) -> bool:
    """Whether all batches of this iteration are done."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch and 0 < progress.current.ready == progress.current.completed


class BestCheckpoint(_InPlaceCheckpoint):
    """Saves `best.ckpt`, the iteration with the best `monitor`.

    Ties go to the iteration with the better `tie_break`, then to the earlier iteration.

    The choice is made after a validation, and the file is saved at the end of that iteration. The file has no optimizer
    state, because this state is twice the size of the trained weights. To resume a fit, use last.ckpt.

    Args:
        monitor: A validation metric. By default the metric of the objective (`Objective.best`), such as the accuracy on
            held-out pairs. If the objective has no such metric or no rows are held out, the default is the return of
            played episodes. If no episodes are played, the default is the loss of held-out rows (lowest is best).
            `loss` always means this loss.
        mode: "max" or "min", for both metrics.
        tie_break: Metric that decides between equal values of `monitor`, such as two perfect returns. Not used if
            `monitor` is the metric of the objective.
        optimizer: Whether to save the optimizer state too, so that a fit can resume from best.ckpt.

    Raises:
        ValueError: The validation does not log the given `monitor`. Raised before training if this is known in advance.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        tie_break: str | None = f"{RETURN}_sampled",
        optimizer: bool = False,
    ) -> None:
        if monitor == LOSS:
            mode, tie_break = "min", None
        super().__init__("best", monitor=monitor or RETURN, mode=mode)
        self.optimizer, self._saving = optimizer, False
        self.tie_break = tie_break
        self.best_scores: tuple[float, float] | None = None  # values of monitor and tie break
        self._explicit, self._by_loss = monitor not in (None, LOSS), monitor == LOSS
        self._requested: tuple[str, str] = (monitor or RETURN, mode)
        self._watched: tuple[str, str] = self._requested  # metric of `best_scores`, and its mode
        self._breaks_ties = True  # whether `tie_break` counts
        self._due = False  # whether this iteration is the best but not saved yet
        self._warned = False  # whether it was printed that no best.ckpt will be saved

    @property
    def best_value(self) -> str:
        """The monitor and its best value as text, such as `val/return 0.5`."""
        value = "" if self.best_scores is None else f" {float(self._signed(self.best_scores[0])):.4g}"
        return f"{self._watched[0]}{value}"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Decide here, before any checkpoint of this iteration is saved. Otherwise last.ckpt could hold the previous
        # best score, and a run resumed from last.ckpt would overwrite best.ckpt with a worse iteration.
        if nothing_to_save(self, trainer):
            return
        self._watch(trainer, pl_module)
        scores = self._scores(trainer)
        better = scores is not None and (self.best_scores is None or scores > self.best_scores)
        # Saving is collective, so all ranks must decide alike, even if their metrics differ.
        if trainer.strategy.reduce_boolean_decision(better):
            self.best_scores, self._due = scores, True

    def check_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the monitor before training.

        Raises:
            ValueError: No validation of this fit will log the given `monitor`.
        """
        if self._explicit:
            refuse_unknown_monitor("BestCheckpoint", self._requested[0], trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check_fit(trainer, pl_module)
        # If the process ended after saving last.ckpt and before saving best.ckpt, the loaded weights are the best.
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
        if self._saving and not self.optimizer:  # `_saving` is False while another callback saves
            del checkpoint["optimizer_states"]

    def _watch(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the metric to compare, and forget the scores of any other metric."""
        metrics, watched = trainer.callback_metrics, self._requested
        chosen = None if self._explicit else best_metric(pl_module)
        if self._by_loss:
            chosen = (held_out_loss(trainer, pl_module) or RETURN, "min")
        self._breaks_ties = chosen is None or chosen[0] not in metrics
        if chosen is not None and chosen[0] in metrics:
            watched = chosen
        if watched[0] not in metrics:
            logged = ", ".join(sorted(metrics)) or "nothing"
            text = f"BestCheckpoint.monitor: the validation does not log {watched[0]}; it logs {logged}"
            if self._explicit:
                raise ValueError(text)
            loss = held_out_loss(trainer, pl_module)
            if loss is None and data_source(trainer).unpaid:  # expected, so print it only once
                if not self._warned:
                    rank_zero_info("No best.ckpt is saved: replies have no score, so no iteration is the best.")
                self._warned = True
            elif loss is None:
                rank_zero_warn(f"{text}. No best.ckpt is saved; set `monitor` to one of them")
            else:
                watched = loss, "min"
        # Scores of another metric cannot be compared, and scores of a deleted file no longer matter.
        if watched != self._watched or (self.best_model_path and not self.path.exists()):
            self._watched, self.best_scores = watched, None

    def _scores(self, trainer: L.Trainer) -> tuple[float, float] | None:
        """Values of the monitor and the tie break; higher is better. None if the monitor is NaN or missing."""
        names = (self._watched[0], self.tie_break if self.tie_break and self._breaks_ties else "")
        first, tie = (float(self._signed(trainer.callback_metrics.get(name, math.nan))) for name in names)
        return None if math.isnan(first) else (first, -math.inf if math.isnan(tie) else tie)

    def _signed(self, x: Any) -> Any:
        return x if self._watched[1] == "max" else -x

    def state_dict(self) -> dict[str, Any]:
        scores = None if self.best_scores is None else list(self.best_scores)
        return {"scores": scores, "due": self._due, "watched": list(self._watched)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run that resumes in another folder has no best.ckpt there; its first validation saves one.
        scores, due = state_dict["scores"], state_dict["due"]
        name, mode = state_dict.get("watched", self._watched)
        self._watched = name, mode
        if scores is not None and (due or self.path.exists()):
            self.best_scores, self._due = (scores[0], scores[1]), due
            self.best_model_path = "" if due else str(self.path)
