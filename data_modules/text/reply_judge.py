"""Interface of judges that score replies by their text, in place of the task's rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from data_modules.text.environment import Case
from data_modules.text.episode import Episode
from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import last_valid


@runtime_checkable
class ReplyJudge(Protocol):
    """A judge that scores replies by their text. A `Scorer` reads tokens; a yaml gives either by `class_path`."""

    def check(self, cases: Sequence[Case]) -> None:
        """Check the cases before any episode.  Raises ValueError: a case lacks facts that the judge needs."""

    def judge(self, episodes: Sequence[Episode]) -> list[float]:
        """Score each episode: its only reply, or the whole dialogue."""
        ...


def paid_at_the_end(batch: Batch, of: Tensor, scores: Sequence[float]) -> Batch:
    """Add rewards (B, T) to the batch: an episode's score at the last valid step of the episode's last row, else 0.

    Args: of: (B,) the episode of each row, −1 = none; scores: the score of each episode.
    Raises:
        ValueError: the number of scores is not the number of episodes.
    """
    if len(scores) != (episodes := int(of.max()) + 1):
        raise ValueError(f"reward: the judge gave {len(scores)} scores for {episodes} replies")
    rows = torch.arange(len(of))[of >= 0]
    last = torch.full((len(scores),), -1).scatter_reduce(0, of[of >= 0], rows, "amax")
    amount = torch.zeros(len(of)).index_put((last,), torch.tensor(scores, dtype=torch.float32))
    return replace(batch, rewards=torch.where(last_valid(batch.valid), amount[:, None], 0))
