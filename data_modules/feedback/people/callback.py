"""The end of a prediction in front of people; episodes as GIFs, each beside the rows that were played."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from data_modules.feedback.people.ask import ask
from data_modules.feedback.people.store import DEFAULT_EXPERIMENT
from data_modules.judgements.fields import Scale
from data_modules.offline import save_batch
from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import row_sums

KINDS = ("deterministic", "sampled")  # of the loaders with episodes


@runtime_checkable
class Filming(Protocol):
    """A DataModule whose episodes can be watched."""

    question: str  # what a person should know of the task

    def film(self, episode: Batch, path: Path, title: str) -> Path:
        """Draws an episode, a batch of one row, as a GIF."""
        ...


@runtime_checkable
class Recording(Protocol):
    """A DataModule that says itself what is written of a prediction, and to which file, without its ending."""

    recorded: str | None


@runtime_checkable
class Storing(Protocol):
    """A logger that says where its store is."""

    tracking_uri: str | None


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
        replies = isinstance(source, Recording) and source.recorded == "replies"
        if not isinstance(source, Filming) and not replies:
            raise ValueError(f"AskPeople: nobody can judge what {type(source).__name__} predicts: use a text task")
        if trainer.world_size > 1:
            raise ValueError(f"AskPeople: one process asks, and there are {trainer.world_size}; use trainer.devices=1")
        self._filmed = []

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: object, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
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
        uris = (logger.tracking_uri for logger in trainer.loggers if isinstance(logger, Storing))
        uri = next((uri for uri in uris if uri), None)
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


def filmed(source: Filming, batch: Batch, who: str, folder: Path) -> list[dict[str, Any]]:
    """A line of a feedback file for each row: `episode` names the recorded row, and its GIF lies beside it.

    Args: who: acted, for the names of the files; batch: whole episodes, (B, T).
    """
    assert batch.rewards is not None and batch.terminated is not None
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(len(batch)):
        episode = batch[row : row + 1]
        # By its content: a later prediction in the same folder must not lie where a review says that this one is.
        content = hashlib.sha256(episode.obs.numpy().tobytes() + episode.actions.numpy().tobytes()).hexdigest()
        name = f"{who}-{row}-{content[:8]}"
        path = folder / f"{name}.pt"
        save_batch(episode, path)
        source.film(episode, path.with_suffix(".gif"), f"episode {name}")
        steps, total = int(episode.valid.sum()), float(row_sums(batch.rewards, batch.valid)[row])
        ending = "then it was over" if bool(batch.terminated[row]) else "and it went on"
        line = {"id": name, "prompt": source.question, "responses": [f"{steps} steps, return {total:g}, {ending}"]}
        lines.append(line | {"episode": str(path), "meta": {"steps": steps}})
    return lines
