"""Rewards of the steps of a reply: a number behind the end of each, from labels that a teacher gave them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from lightning_nlf.batch import Batch
from lightning_nlf.functional import masked_mean
from lightning_nlf.objective import Evaluation, Objective, Terms
from lightning_nlf.reliability import Reliability
from lightning_nlf.reward_module import RewardModule


def step_correctness_loss(rewards: Tensor, labels: Tensor, ends: Tensor, total: Tensor | None = None) -> Tensor:
    """E[−y log σ(r) − (1 − y) log σ(−r)] over the ends of steps: eq. 2 of https://arxiv.org/abs/2312.08935.

    Args: rewards r, labels y in [0, 1], ends (B, T); total: of the ends, as stamped.  Returns ().
    """
    return masked_mean(-labels * F.logsigmoid(rewards) - (1 - labels) * F.logsigmoid(-rewards), ends, total)


def step_value_loss(rewards: Tensor, labels: Tensor, ends: Tensor, total: Tensor | None = None) -> Tensor:
    """E[(r − y)²] over the ends of steps.  rewards r, labels y, ends (B, T) → ()"""
    return masked_mean((rewards - labels) ** 2, ends, total)


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

    counted = "step_ends"
    by_step = True

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's labels, and where they are, both (B, T)."""
        return step_labels(batch)

    def judged(self, batch: Batch) -> Tensor:
        return self.labels(batch)[1]


class StepCorrectnessObjective(StepLabelObjective):
    """The log-odds that a step is right, from labels 0 and 1, or the share of right answers that it led to.

    Logs of an evaluation: `accuracy` at even odds, and `calibration_error`. `reliability.md` is an exhibit.

    Raises:
        ValueError: a label outside [0, 1].
    """

    term = "step_correctness"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.accuracy, self.calibration = MeanMetric(), Reliability()

    def prepare(self, batch: Batch) -> Batch:
        batch = super().prepare(batch)
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

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        assert now.values is not None
        now.over[self.term] = self.counted
        loss = step_correctness_loss(now.values, *self.labels(batch), batch.totals.get(self.counted))
        return super().terms(batch, now) | {self.term: loss}

    def held_out_metrics(self) -> tuple[str, ...]:
        return (*super().held_out_metrics(), "accuracy", "calibration_error")

    def contrast(self, stage: str, batch: Batch, now: Evaluation) -> None:
        super().contrast(stage, batch, now)
        assert now.values is not None
        labels, ends = self.labels(batch)
        probability, right = now.values[ends].sigmoid(), labels[ends]
        self.accuracy.update(((probability > 0.5) == (right > 0.5)).float())
        self.calibration.update(probability, right)
        for name, metric in (("accuracy", self.accuracy), ("calibration_error", self.calibration)):
            self.log(f"{stage}/{name}", metric, batch_size=len(batch))


class StepValueObjective(StepLabelObjective):
    """The label itself, a number of any size, by least squares. One step a reply makes it a reward of whole replies."""

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        assert now.values is not None
        now.over["step_value"] = self.counted
        loss = step_value_loss(now.values, *self.labels(batch), batch.totals.get(self.counted))
        return super().terms(batch, now) | {"step_value": loss}


class ProcessReward(StepCorrectnessObjective, RewardModule):
    """How likely each step is right."""


class StepValueReward(StepValueObjective, RewardModule):
    """What each step is worth."""
