"""Episodes for people to watch: each as a GIF, beside the rows that were played."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from data_modules.offline import save_batch
from lightning_nlf.batch import Batch
from lightning_nlf.functional import row_sums


@runtime_checkable
class Filming(Protocol):
    """A DataModule whose episodes can be watched."""

    question: str  # what a person should know of the task

    def film(self, episode: Batch, path: Path, title: str) -> Path:
        """Draws an episode, a batch of one row, as a GIF."""
        ...


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
        lines.append(
            {
                "id": name,
                "prompt": source.question,
                "responses": [f"{steps} steps, return {total:g}, {ending}"],
                "episode": str(path),
                "meta": {"steps": steps},
            }
        )
    return lines
