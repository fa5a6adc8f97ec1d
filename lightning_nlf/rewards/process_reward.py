"""Process reward models (PRM): one reward at the end of each step of a reply, trained on step labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import check_shapes, mean_or_zero
from lightning_nlf.objective import Best, Evaluation, Objective, Term
from lightning_nlf.rewards.reliability import Reliability
from lightning_nlf.rewards.reward_module import RewardModule


def step_correctness_loss(rewards: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy −y log σ(r) − (1 − y) log σ(−r) of a step label: eq. 2 of https://arxiv.org/abs/2312.08935.

    Args: rewards r, labels y in [0, 1], (B, T).  Returns (B, T).
    """
    check_shapes(2, rewards=rewards, labels=labels)
    return -labels * F.logsigmoid(rewards) - (1 - labels) * F.logsigmoid(-rewards)


def step_value_loss(rewards: Tensor, labels: Tensor) -> Tensor:
    """Squared error (r − y)² of a step label.  rewards r, labels y (B, T) → (B, T)"""
    check_shapes(2, rewards=rewards, labels=labels)
    return (rewards - labels) ** 2


def step_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """The teacher's labels, and a mask of the step ends that have a label, both (B, T).

    Raises:
        ValueError: the batch has no step labels.
    """
    if batch.rewards is None or "step_ends" not in batch.extra:
        raise ValueError('a process reward needs labels: set `rewards` at the steps marked in `extra["step_ends"]`')
    return batch.rewards, batch.extra["step_ends"]


class StepLabelObjective(Objective):
    """Base of process rewards: reads the reward at the end of each labelled step."""

    needs: tuple[type, ...] = (RewardModule,)
    by_step = True

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's labels, and a mask of their places, both (B, T)."""
        return step_labels(batch)

    def masks(self, batch: Batch) -> Batch:
        """Add the mask `labelled`: the step ends with a label."""
        return batch.with_masks(labelled=self.labels(batch)[1])


class StepCorrectnessObjective(StepLabelObjective):
    """The log-odds that a step is right, learned from labels of 0 or 1, or from the share of right continuations.

    An evaluation logs `accuracy` at a threshold of 0.5, and `calibration_error`. `reliability.md` is an exhibit.

    Raises:
        ValueError: a label is outside [0, 1].
    """

    term = "step_correctness"
    reports: tuple[str, ...] = ("step_correctness",)
    best: Best = ("accuracy", "max")
    measures: tuple[str, ...] = ("accuracy", "calibration_error")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.calibration = Reliability()

    def select(self, batch: Batch) -> Batch:
        """Refuse labels that are not probabilities. All rows are kept."""
        labels, ends = self.labels(batch)
        values = labels[ends]
        if ((values < 0) | (values > 1)).any():
            field = "steps" if self.by_step else "score"
            raise ValueError(
                f"{field}: labels are from {float(values.min()):g} to {float(values.max()):g}, must be in [0, 1]; for "
                f"other numbers, use {'StepValueReward' if self.by_step else 'a reward from rankings'}"
            )
        return batch

    def policy_reward(self, rewards: Tensor) -> Tensor:
        """The probability that a step is right, from its log-odds."""
        return rewards.sigmoid()

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        assert now.values is not None
        yield Term(self.term, step_correctness_loss(now.values, self.labels(batch)[0]), "labelled")

    def measure(self, stage: str, batch: Batch, now: Evaluation) -> None:
        assert now.values is not None
        labels, ends = self.labels(batch)
        probability, right = now.values[ends].sigmoid(), labels[ends]
        agreement = ((probability > 0.5) == (right > 0.5)).float()
        self.log_mean(stage, "accuracy", mean_or_zero(agreement), ends.sum())
        self.calibration.update(probability, right)
        self.log(f"{stage}/calibration_error", self.calibration, batch_size=len(batch))


class StepValueObjective(StepLabelObjective):
    """Least-squares regression on step labels of any size.

    With one step per reply, this is a reward for whole replies.
    """

    reports: tuple[str, ...] = ("step_value",)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        assert now.values is not None
        yield Term("step_value", step_value_loss(now.values, self.labels(batch)[0]), "labelled")


class ProcessReward(StepCorrectnessObjective, RewardModule):
    """Process reward model: the probability that each step is right."""

    feedback: tuple[str, ...] = ("steps",)


class StepValueReward(StepValueObjective, RewardModule):
    """Process reward model: the value of each step."""

    feedback: tuple[str, ...] = ("steps",)
