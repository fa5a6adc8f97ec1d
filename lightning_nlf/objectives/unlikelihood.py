"""Unlikelihood training: lower the probability of the tokens of bad replies."""

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
from lightning_nlf.objective import Best, Evaluation, Objective, Term
from lightning_nlf.objectives.direct_preference import reply_steps
from lightning_nlf.objectives.kto import good_and_bad


def unlikelihood_loss(log_probs: Tensor) -> Tensor:
    """Unlikelihood loss −log(1 − π(a)): https://arxiv.org/abs/1908.04319. π is clamped to 1 − 1e-6.  (B, T) → (B, T)"""
    check_shapes(2, log_probs=log_probs)
    return -torch.log(-torch.expm1(log_probs.clamp(max=-1e-6)))


class UnlikelihoodObjective(Objective):
    """Unlikelihood training: raise the likelihood of good rows, and lower the likelihood of bad rows.

    Args:
        threshold: a row is good if its score is at least this value. None: `extra["label"]` is used.
        unlikelihood_weight: weight of the loss on bad rows. At 0, only the good rows are imitated.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    best: Best = ("unlikelihood", "min")
    feedback: tuple[str, ...] = ("score",)
    reports: tuple[str, ...] = ("likelihood", "unlikelihood")

    def __init__(self, threshold: Number | None = None, unlikelihood_weight: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold, self.unlikelihood_weight = threshold, unlikelihood_weight

    def masks(self, batch: Batch) -> Batch:
        """Add the masks `good` and `bad`: the steps of good and of bad replies."""
        steps = reply_steps(batch)
        good, bad = (rows[:, None] & steps for rows in good_and_bad(batch, self.threshold))
        return batch.with_masks(good=good, bad=bad)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        if not isinstance(now.distribution, Categorical):
            raise ValueError("unlikelihood needs probabilities: use a policy with discrete actions, such as tokens")
        yield Term("likelihood", -now.log_probs, "good")
        yield Term("unlikelihood", unlikelihood_loss(now.log_probs), "bad", weight=self.unlikelihood_weight)


class UnlikelihoodPolicy(UnlikelihoodObjective, PolicyModule):
    """Policy trained with unlikelihood on bad replies."""
