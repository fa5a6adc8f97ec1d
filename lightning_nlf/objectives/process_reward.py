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


def step_correctness_loss(rewards: Tensor, labels: Tensor, mask: Tensor, total: Tensor | None = None) -> Tensor:
    """E[−y log σ(r) − (1 − y) log σ(−r)] over the ends of steps: eq. 2 of https://arxiv.org/abs/2312.08935.

    Args: rewards r, labels y in [0, 1], mask (B, T).  Returns ().
    """
    return masked_mean(-labels * F.logsigmoid(rewards) - (1 - labels) * F.logsigmoid(-rewards), mask, total)


def step_value_loss(rewards: Tensor, labels: Tensor, mask: Tensor, total: Tensor | None = None) -> Tensor:
    """E[(r − y)²] over the ends of steps.  rewards r, labels y, mask (B, T) → ()"""
    return masked_mean((rewards - labels) ** 2, mask, total)


class StepLabelObjective(Objective):
    """What both have in common: `mask` is True at the ends of steps, and `rewards` there are the teacher's labels."""

    counted = "mask"
    by_step = True

    def judged(self, batch: Batch) -> Tensor:
        return batch.mask

    def prepare(self, batch: Batch) -> Batch:
        batch = super().prepare(batch)
        labels(batch)
        return batch


def labels(batch: Batch) -> Tensor:
    """(B, T).  Raises ValueError: there are none."""
    if batch.rewards is None:
        raise ValueError("a process reward needs the labels of the steps in `rewards`, where `mask` is True")
    return batch.rewards


class StepCorrectnessObjective(StepLabelObjective):
    """The log-odds that a step is right, from labels 0 and 1 or the share of right ends that it led to.

    Logs of an evaluation: `accuracy` at even odds, and `calibration_error`. `reliability.md` is an exhibit.

    Raises:
        ValueError: a label outside [0, 1].
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.accuracy, self.calibration = MeanMetric(), Reliability()

    def prepare(self, batch: Batch) -> Batch:
        batch = super().prepare(batch)
        known = labels(batch)[batch.mask]
        if ((known < 0) | (known > 1)).any():
            raise ValueError(
                f"rewards: a step is labelled {float(known.min()):g} to {float(known.max()):g}, must be in [0, 1]; "
                "other numbers are for StepValueReward"
            )
        return batch

    def paid(self, rewards: Tensor) -> Tensor:
        """The probability that the step is right."""
        return rewards.sigmoid()

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        assert now.values is not None
        now.over["step_correctness"] = self.counted
        loss = step_correctness_loss(now.values, labels(batch), batch.mask, batch.totals.get(self.counted))
        return super().terms(batch, now) | {"step_correctness": loss}

    def contrast(self, stage: str, batch: Batch, now: Evaluation) -> None:
        super().contrast(stage, batch, now)
        assert now.values is not None
        probability, right = now.values[batch.mask].sigmoid(), labels(batch)[batch.mask]
        self.accuracy.update(((probability > 0.5) == (right > 0.5)).float())
        self.calibration.update(probability, right)
        for name, metric in (("accuracy", self.accuracy), ("calibration_error", self.calibration)):
            self.log(f"{stage}/{name}", metric, batch_size=len(batch))


class StepValueObjective(StepLabelObjective):
    """The label itself, a number of any size, by least squares. With `mask` at last tokens only: of whole replies."""

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        assert now.values is not None
        now.over["step_value"] = self.counted
        loss = step_value_loss(now.values, labels(batch), batch.mask, batch.totals.get(self.counted))
        return super().terms(batch, now) | {"step_value": loss}


class ProcessReward(StepCorrectnessObjective, RewardModule):
    """How likely each step is right."""


class StepValueReward(StepValueObjective, RewardModule):
    """What each step is worth."""
