"""Callback that submits predictions to a review queue; episodes of control tasks are shown as GIFs."""

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

KINDS = ("deterministic", "sampled")  # how the policy acts in each prediction loader


@runtime_checkable
class Filming(Protocol):
    """A DataModule that can draw its episodes."""

    question: str  # explains the task to a reviewer

    def film(self, episode: Batch, path: Path, title: str) -> Path:
        """Draw an episode, a batch of one row, as a GIF."""
        ...


@runtime_checkable
class Recording(Protocol):
    """A DataModule that writes its predictions itself. `recorded` is the file name without extension."""

    recorded: str | None


@runtime_checkable
class Storing(Protocol):
    """A logger that has the address of its store."""

    tracking_uri: str | None


class AskPeople(L.Callback):
    """Callback that submits predictions to a review queue, as `python -m data_modules.feedback ask` does with a file.

    For a text task the callback submits the prediction file, `<run>/predictions/replies.jsonl`. For a task whose
    episodes can be drawn, the callback writes `<run>/predictions/filmed.jsonl`, and the rows and GIFs in the folder
    `episodes/` beside that file. The MLflow store is the store of the run's logger.

    Args:
        queue, scale, reviewers, experiment: see `ask`.
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
        """Raises ValueError: the DataModule's predictions cannot be shown to people, or there are several processes."""
        source = trainer.datamodule  # type: ignore[attr-defined]  # set without being declared
        replies = isinstance(source, Recording) and source.recorded == "replies"
        if not isinstance(source, Filming) and not replies:
            raise ValueError(
                f"AskPeople: people cannot judge the predictions of {type(source).__name__}; use a text task or one "
                "with episodes that can be drawn"
            )
        if trainer.world_size > 1:
            raise ValueError(f"AskPeople: got {trainer.world_size} processes, supports one; set trainer.devices=1")
        self._filmed = []

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: object, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        source = trainer.datamodule  # type: ignore[attr-defined]
        rehearses = trainer.fast_dev_run  # type: ignore[attr-defined]
        if isinstance(source, Filming) and isinstance(outputs, Batch) and not rehearses:
            self._filmed += filmed(source, outputs.to("cpu"), KINDS[dataloader_idx], _folder(trainer) / "episodes")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # a rehearsal submits nothing
            return
        path = _folder(trainer) / "replies.jsonl"
        if self._filmed:
            path = path.with_name("filmed.jsonl")
            path.write_text("".join(json.dumps(line) + "\n" for line in self._filmed), encoding="utf-8")
        uris = (logger.tracking_uri for logger in trainer.loggers if isinstance(logger, Storing))
        uri = next((uri for uri in uris if uri), None)
        try:
            submission = ask(path, self.queue, uri, self.scale, self.reviewers, self.experiment)
        except ValueError as error:
            raise ValueError(f"{error}. The predictions are saved; submit them with: {self.again(path)}") from error
        rank_zero_info(str(submission))

    def again(self, path: Path) -> str:
        """The shell command that submits the same file again."""
        words = ["python", "-m", "data_modules.feedback", "ask", str(path), "--queue", self.queue]
        words += ["--scale", *(f"{end:g}" for end in self.scale), "--experiment", self.experiment]
        return shlex.join([*words, *(["--reviewers", *self.reviewers] if self.reviewers else [])])


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "predictions"


def filmed(source: Filming, batch: Batch, policy_kind: str, folder: Path) -> list[dict[str, Any]]:
    """Write the row and a GIF of each episode to files, and return a line of a feedback file for each episode.

    Args: batch: rows (B, T) that are whole episodes; policy_kind: how the policy acted, for the file names.
    """
    assert batch.rewards is not None and batch.terminated is not None
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(len(batch)):
        episode = batch[row : row + 1]
        # Named by content: a later prediction in the same folder must not replace a file that a review refers to.
        content = hashlib.sha256(episode.obs.numpy().tobytes() + episode.actions.numpy().tobytes()).hexdigest()
        name = f"{policy_kind}-{row}-{content[:8]}"
        path = folder / f"{name}.pt"
        save_batch(episode, path)
        source.film(episode, path.with_suffix(".gif"), f"episode {name}")
        steps, total = int(episode.valid.sum()), float(row_sums(batch.rewards, batch.valid)[row])
        ending = "ended by termination" if bool(batch.terminated[row]) else "cut off by the time limit"
        line = {"id": name, "prompt": source.question, "responses": [f"{steps} steps, return {total:g}, {ending}"]}
        lines.append(line | {"episode": str(path), "meta": {"steps": steps}})
    return lines
