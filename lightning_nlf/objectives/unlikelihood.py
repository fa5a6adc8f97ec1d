"""Unlikelihood: away from what was bad, token by token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from lightning_nlf.batch import Batch
from lightning_nlf.functional import masked_mean
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Number
from lightning_nlf.objective import Evaluation, Terms
from lightning_nlf.objectives.direct_preference import reply_steps
from lightning_nlf.objectives.held_out import HeldOutObjective
from lightning_nlf.objectives.kto import judged


def unlikelihood_loss(log_probs: Tensor, mask: Tensor, total: Tensor | None = None) -> Tensor:
    """−E[log(1 − π(a))]: https://arxiv.org/abs/1908.04319; π is kept 1e-6 below 1.

    Args: log_probs, mask (B, T).  Returns ().
    """
    return -masked_mean(torch.log(-torch.expm1(log_probs.clamp(max=-1e-6))), mask, total)


class UnlikelihoodObjective(HeldOutObjective):
    """The likelihood of good rows and the unlikelihood of bad ones.

    Args:
        threshold: a row is good from this score on; without it by `extra["label"]`.
        unlikelihood_weight: of the bad rows' term; 0 is filtering.
    """

    measured = ("likelihood", "unlikelihood")
    held_out_losses: tuple[str, ...] = ("likelihood", "unlikelihood")

    def __init__(self, threshold: Number | None = None, unlikelihood_weight: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold, self.unlikelihood_weight = threshold, unlikelihood_weight

    def complete(self, batch: Batch) -> Batch:
        batch = super().complete(batch)
        steps = reply_steps(batch)
        good, bad = (rows[:, None] & steps for rows in judged(batch, self.threshold))
        return replace(batch, extra=batch.extra | {"good": good, "bad": bad})

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        if not isinstance(now.distribution, Categorical):
            raise ValueError("unlikelihood is of probabilities: it needs discrete actions, such as tokens")
        good, bad = batch.extra["good"], batch.extra["bad"]
        likelihood = masked_mean(-now.log_probs, good, batch.totals.get("good"))
        unlikelihood = unlikelihood_loss(now.log_probs, bad, batch.totals.get("bad"))
        now.over |= {"likelihood": "good", "unlikelihood": "bad"}
        return super().terms(batch, now) | {
            "likelihood": likelihood,
            "unlikelihood": self.unlikelihood_weight * unlikelihood,
        }


class UnlikelihoodPolicy(UnlikelihoodObjective, PolicyModule):
    """A policy that learned what not to say."""
