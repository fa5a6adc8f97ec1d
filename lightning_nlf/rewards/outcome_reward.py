"""Outcome reward model (ORM): one reward per reply, at its last token, trained on labels of the whole reply."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import last_valid
from lightning_nlf.rewards.process_reward import StepCorrectnessObjective
from lightning_nlf.rewards.reward_module import RewardModule


def outcome_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """The teacher's scores, placed at the last step of each scored reply, and a mask of these steps, both (B, T).

    Raises:
        ValueError: the batch has no scores.
    """
    if batch.score is None or "scored" not in batch.extra:
        raise ValueError('an outcome reward needs scores: set `score`, and `extra["scored"]` for replies with a score')
    ends = last_valid(batch.valid) & batch.extra["scored"][:, None]
    return torch.where(ends, batch.score[:, None], 0), ends  # an unknown score is NaN


class OutcomeObjective(StepCorrectnessObjective):
    """Outcome reward: the log-odds that a reply is right, learned from scores in [0, 1].

    The loss is the cross-entropy of step labels, with one label per reply: eq. 1 of https://arxiv.org/abs/2312.08935.

    Raises:
        ValueError: a score is outside [0, 1], or the batch has no scores.
    """

    by_step = False
    term = "outcome"
    reports: tuple[str, ...] = ("outcome",)

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return outcome_labels(batch)


class OutcomeReward(OutcomeObjective, RewardModule):
    """Outcome reward model: the probability that a whole reply is right."""

    feedback: tuple[str, ...] = ("score",)
