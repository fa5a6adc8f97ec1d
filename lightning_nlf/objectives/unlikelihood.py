"""Unlikelihood: away from what was bad, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import check_shapes
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Number
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.objectives.direct_preference import reply_steps
from lightning_nlf.objectives.kto import judged


def unlikelihood_loss(log_probs: Tensor) -> Tensor:
    """−log(1 − π(a)): https://arxiv.org/abs/1908.04319; π is kept 1e-6 below 1.  log_probs (B, T) → (B, T)"""
    check_shapes(2, log_probs=log_probs)
    return -torch.log(-torch.expm1(log_probs.clamp(max=-1e-6)))


class UnlikelihoodObjective(Objective):
    """The likelihood of good rows and the unlikelihood of bad ones.

    Args:
        threshold: a row is good from this score on; without it by `extra["label"]`.
        unlikelihood_weight: of the bad rows' term; 0 is filtering.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    reports: tuple[str, ...] = ("likelihood", "unlikelihood")

    def __init__(self, threshold: Number | None = None, unlikelihood_weight: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold, self.unlikelihood_weight = threshold, unlikelihood_weight

    def masks(self, batch: Batch) -> Batch:
        """`good` and `bad` steps."""
        steps = reply_steps(batch)
        good, bad = (rows[:, None] & steps for rows in judged(batch, self.threshold))
        return batch.with_masks(good=good, bad=bad)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        if not isinstance(now.distribution, Categorical):
            raise ValueError("unlikelihood is of probabilities: it needs discrete actions, such as tokens")
        yield Term("likelihood", -now.log_probs, "good")
        yield Term("unlikelihood", unlikelihood_loss(now.log_probs), "bad", weight=self.unlikelihood_weight)


class UnlikelihoodPolicy(UnlikelihoodObjective, PolicyModule):
    """A policy that learned what not to say."""
