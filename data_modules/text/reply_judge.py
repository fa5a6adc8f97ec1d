"""A judge of text that pays for replies, in the place of the task's rule."""

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
    """Pays for whole replies by their text; a `Scorer` pays by tokens. Either comes in the yaml by `class_path`."""

    def check(self, cases: Sequence[Case]) -> None:
        """Before anything is played.  Raises ValueError: a case whose facts are not enough to judge a reply."""

    def judge(self, episodes: Sequence[Episode]) -> list[float]:
        """The score of each: of its only reply, or of all that was said."""
        ...


def paid_at_the_end(batch: Batch, of: Tensor, scores: Sequence[float]) -> Batch:
    """With rewards (B, T): the score of an episode on the last valid step of its last row, else 0.

    Args: of: (B,) the episode of each row, −1 of none; scores: of each episode.
    Raises:
        ValueError: more or fewer scores than episodes.
    """
    if len(scores) != (episodes := int(of.max()) + 1):
        raise ValueError(f"reward: the judge gave {len(scores)} scores for {episodes} replies")
    rows = torch.arange(len(of))[of >= 0]
    last = torch.full((len(scores),), -1).scatter_reduce(0, of[of >= 0], rows, "amax")
    amount = torch.zeros(len(of)).index_put((last,), torch.tensor(scores, dtype=torch.float32))
    return replace(batch, rewards=torch.where(last_valid(batch.valid), amount[:, None], 0))
