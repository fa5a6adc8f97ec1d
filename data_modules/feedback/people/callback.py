"""The end of a prediction in front of people."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from data_modules.feedback.fields import Scale
from data_modules.feedback.people.ask import ask
from data_modules.feedback.people.filming import Filming, filmed
from data_modules.feedback.people.store import DEFAULT_EXPERIMENT
from lightning_nlf.batch import Batch

KINDS = ("deterministic", "sampled")  # of the loaders with episodes


class AskPeople(L.Callback):
    """What `predict` sampled goes into a review queue, as `python -m data_modules.feedback ask` does it with a file.

    That file is the one that a text task records, `<run>/predictions/replies.jsonl`. Episodes that can be watched are
    recorded here: `<run>/predictions/filmed.jsonl`, the rows and GIFs beside it. The store is that of the run's
    logger.

    Args:
        queue, scale, reviewers, experiment: of `ask`.
    """

    def __init__(
        self,
        queue: str,
        scale: Scale = (0.0, 1.0),
        reviewers: tuple[str, ...] = (),
        experiment: str = DEFAULT_EXPERIMENT,
    ) -> None:
        self.queue, self.scale, self.reviewers, self.experiment = queue, scale, reviewers, experiment
        self._filmed: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises ValueError: a DataModule whose predictions nobody can judge, or several processes."""
        source = trainer.datamodule  # type: ignore[attr-defined]  # set without being declared
        if not isinstance(source, Filming) and getattr(source, "recorded", None) != "replies":
            raise ValueError(f"AskPeople: nobody can judge what {type(source).__name__} predicts: use a text task")
        if trainer.world_size > 1:
            raise ValueError(f"AskPeople: one process asks, and there are {trainer.world_size}; use trainer.devices=1")
        self._filmed = []

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        source = trainer.datamodule  # type: ignore[attr-defined]
        rehearses = trainer.fast_dev_run  # type: ignore[attr-defined]
        if isinstance(source, Filming) and isinstance(outputs, Batch) and not rehearses:
            self._filmed += filmed(source, outputs.to("cpu"), KINDS[dataloader_idx], _folder(trainer) / "episodes")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # a rehearsal asks nobody
            return
        path = _folder(trainer) / "replies.jsonl"
        if self._filmed:
            path = path.with_name("filmed.jsonl")
            path.write_text("".join(json.dumps(line) + "\n" for line in self._filmed), encoding="utf-8")
        uri = next((own for logger in trainer.loggers if (own := getattr(logger, "tracking_uri", None))), None)
        try:
            put = ask(path, self.queue, uri, self.scale, self.reviewers, self.experiment)
        except ValueError as error:
            raise ValueError(f"{error}. What was predicted is there: {self.again(path)}") from error
        rank_zero_info(str(put))

    def again(self, path: Path) -> str:
        """The command that asks the same."""
        words = ["python", "-m", "data_modules.feedback", "ask", str(path), "--queue", self.queue]
        words += ["--scale", *(f"{end:g}" for end in self.scale), "--experiment", self.experiment]
        return shlex.join([*words, *(["--reviewers", *self.reviewers] if self.reviewers else [])])


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "predictions"
