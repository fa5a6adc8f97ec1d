"""Rewards of whole replies from labels of their outcome: a number behind the last token, and no word on the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import last_valid
from lightning_nlf.rewards.process_reward import StepCorrectnessObjective
from lightning_nlf.rewards.reward_module import RewardModule


def outcome_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """The teacher's scores, and the last step of each reply that has one, both (B, T).

    Raises:
        ValueError: there are none.
    """
    if batch.score is None or "scored" not in batch.extra:
        raise ValueError('an outcome reward needs scores of replies: `score` where `extra["scored"]` is True')
    ends = last_valid(batch.valid) & batch.extra["scored"][:, None]
    return torch.where(ends, batch.score[:, None], 0), ends  # an unknown score is NaN


class OutcomeObjective(StepCorrectnessObjective):
    """The log-odds that a reply is right, from its score, 0 or 1: eq. 1 of https://arxiv.org/abs/2312.08935.

    As the log-odds of steps, with one label a reply.

    Raises:
        ValueError: a score outside [0, 1]; no scores.
    """

    by_step = False
    term = "outcome"
    reports: tuple[str, ...] = ("outcome",)

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return outcome_labels(batch)


class OutcomeReward(OutcomeObjective, RewardModule):
    """How likely a whole reply is right."""
