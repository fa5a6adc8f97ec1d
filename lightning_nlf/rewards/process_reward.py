"""Rewards of the steps of a reply: a number behind the end of each, from labels that a teacher gave them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import check_shapes, mean_or_zero
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.rewards.reliability import Reliability
from lightning_nlf.rewards.reward_module import RewardModule


def step_correctness_loss(rewards: Tensor, labels: Tensor) -> Tensor:
    """−y log σ(r) − (1 − y) log σ(−r): eq. 2 of https://arxiv.org/abs/2312.08935.

    Args: rewards r, labels y in [0, 1], (B, T).  Returns (B, T).
    """
    check_shapes(2, rewards=rewards, labels=labels)
    return -labels * F.logsigmoid(rewards) - (1 - labels) * F.logsigmoid(-rewards)


def step_value_loss(rewards: Tensor, labels: Tensor) -> Tensor:
    """(r − y)².  rewards r, labels y (B, T) → (B, T)"""
    check_shapes(2, rewards=rewards, labels=labels)
    return (rewards - labels) ** 2


def step_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """The teacher's labels, and the ends of steps where they are, both (B, T).

    Raises:
        ValueError: there are none.
    """
    if batch.rewards is None or "step_ends" not in batch.extra:
        raise ValueError('a process reward needs labels of steps: `rewards` where `extra["step_ends"]` is True')
    return batch.rewards, batch.extra["step_ends"]


class StepLabelObjective(Objective):
    """Reads the reward behind the end of each step that has a label."""

    needs: tuple[type, ...] = (RewardModule,)
    by_step = True

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's labels, and where they are, both (B, T)."""
        return step_labels(batch)

    def masks(self, batch: Batch) -> Batch:
        """`labelled`: the steps of which the teacher gave a label."""
        return batch.with_masks(labelled=self.labels(batch)[1])


class StepCorrectnessObjective(StepLabelObjective):
    """The log-odds that a step is right, from labels 0 and 1, or the share of right answers that it led to.

    Logs of an evaluation: `accuracy` at even odds, and `calibration_error`. `reliability.md` is an exhibit.

    Raises:
        ValueError: a label outside [0, 1].
    """

    term = "step_correctness"
    reports: tuple[str, ...] = ("step_correctness",)
    measures: tuple[str, ...] = ("accuracy", "calibration_error")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.calibration = Reliability()

    def select(self, batch: Batch) -> Batch:
        """Refuse labels that are no probability; every row stays."""
        labels, ends = self.labels(batch)
        known = labels[ends]
        if ((known < 0) | (known > 1)).any():
            field = "steps" if self.by_step else "score"
            raise ValueError(
                f"{field}: labels from {float(known.min()):g} to {float(known.max()):g}, must be in [0, 1]; "
                f"other numbers are for {'StepValueReward' if self.by_step else 'rewards from rankings'}"
            )
        return batch

    def paid(self, rewards: Tensor) -> Tensor:
        """The probability that the step is right."""
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
    """The label itself, a number of any size, by least squares. One step a reply makes it a reward of whole replies."""

    reports: tuple[str, ...] = ("step_value",)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        assert now.values is not None
        yield Term("step_value", step_value_loss(now.values, self.labels(batch)[0]), "labelled")


class ProcessReward(StepCorrectnessObjective, RewardModule):
    """How likely each step is right."""


class StepValueReward(StepValueObjective, RewardModule):
    """What each step is worth."""
