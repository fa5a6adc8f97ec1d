"""Preferences without a reference: SLiC, SimPO, CPO, ORPO."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import masked_mean, row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Positive
from lightning_nlf.objective import Evaluation, Terms
from lightning_nlf.objectives.direct_preference import DirectPreferenceObjective, reply_steps
from lightning_nlf.objectives.dpo import dpo_loss
from lightning_nlf.preferences import rankings


def slic_loss(difference: Tensor, margin: float) -> Tensor:
    """max(0, δ − h), h = log π of the chosen minus that of the rejected: https://arxiv.org/abs/2305.10425.  (P,)"""
    return (margin - difference).clamp(min=0)


def simpo_loss(difference: Tensor, beta: float, margin: float) -> Tensor:
    """−log σ(βh − γ), h the difference of mean log-probabilities a token: eq. 6 of https://arxiv.org/abs/2405.14734.

    difference h (P,) → (P,)
    """
    return -F.logsigmoid(beta * difference - margin)


def log_odds(log_probs: Tensor) -> Tensor:
    """log p/(1 − p) from log p < 0; p is kept 1e-6 below 1, where the odds are infinite."""
    log_probs = log_probs.clamp(max=-1e-6)
    return log_probs - torch.log(-torch.expm1(log_probs))


def best_replies(batch: Batch) -> Tensor:
    """(B, T) bool: the steps of the replies that nothing beats, in groups where something is beaten."""
    assert batch.group is not None and batch.rank is not None
    table = rankings(batch.group, batch.rank)  # (G, K), best first
    ranks = torch.where(table >= 0, batch.rank[table.clamp(min=0)], -1)
    best = (ranks == ranks[:, :1]) & (ranks < ranks.max(1, keepdim=True).values) & (table >= 0)
    chosen = torch.zeros_like(batch.mask[:, 0])
    chosen[table[best]] = True
    return chosen[:, None] & reply_steps(batch)


class ReferenceFreeObjective(DirectPreferenceObjective):
    """Held in place by the likelihood of the chosen replies, if by anything: the reference costs nothing.

    Args: chosen_weight: of the chosen replies' negative log-likelihood, in the mean over their tokens.
    """

    length_normalized = False  # compares mean log-probabilities a token instead of a reply's

    def __init__(self, chosen_weight: NonNegative = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.chosen_weight = chosen_weight

    def fitness(self, batch: Batch, now: Evaluation) -> Tensor:
        steps = reply_steps(batch)
        log_probs = row_sums(now.log_probs, steps)
        return log_probs / steps.sum(1).clamp(min=1) if self.length_normalized else log_probs

    def complete(self, batch: Batch) -> Batch:
        batch = super().complete(batch)
        return replace(batch, extra=batch.extra | {"chosen": best_replies(batch)})

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        terms = super().terms(batch, now)
        if not self.chosen_weight:
            return terms
        now.over["chosen"] = "chosen"
        likelihood = masked_mean(-now.log_probs, batch.extra["chosen"], batch.totals.get("chosen"))
        return terms | {"chosen": self.chosen_weight * likelihood}


class SLiCObjective(ReferenceFreeObjective):
    """`slic_loss`, and the likelihood of the chosen replies.

    Args: margin: δ, by which the chosen reply's log-probability shall be higher.
    """

    def __init__(self, margin: NonNegative = 1.0, chosen_weight: NonNegative = 0.1, **kwargs: Any) -> None:
        super().__init__(chosen_weight=chosen_weight, **kwargs)
        self.margin = margin

    def pair_losses(self, difference: Tensor) -> Tensor:
        return slic_loss(difference, self.margin)


class SimPOObjective(ReferenceFreeObjective):
    """`simpo_loss`: the reward is the mean log-probability a token, which is what decoding goes by.

    Args: beta: β of the implicit reward; margin: γ, by which the chosen reply's shall be higher.
    """

    length_normalized = True

    def __init__(self, beta: Positive = 2.0, margin: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beta, self.margin = beta, margin

    def pair_losses(self, difference: Tensor) -> Tensor:
        return simpo_loss(difference, self.beta, self.margin)


class CPOObjective(ReferenceFreeObjective):
    """DPO with a uniform reference, and the likelihood of the chosen replies: https://arxiv.org/abs/2401.08417.

    Args: beta: β of the implicit reward.
    """

    def __init__(self, beta: Positive = 0.1, chosen_weight: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(chosen_weight=chosen_weight, **kwargs)
        self.beta = beta

    def pair_losses(self, difference: Tensor) -> Tensor:
        return dpo_loss(difference, self.beta)


class ORPOObjective(ReferenceFreeObjective):
    """The odds of the chosen reply against those of the rejected, and the likelihood of the chosen.

    Eq. 6 and 7 of https://arxiv.org/abs/2403.07691, p being the geometric mean of the tokens' probabilities.
    Args: odds_weight: λ.
    """

    length_normalized = True

    def __init__(self, odds_weight: NonNegative = 0.1, chosen_weight: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(chosen_weight=chosen_weight, **kwargs)
        self.odds_weight = odds_weight

    def fitness(self, batch: Batch, now: Evaluation) -> Tensor:
        return log_odds(super().fitness(batch, now))

    def pair_losses(self, difference: Tensor) -> Tensor:
        return self.odds_weight * dpo_loss(difference, 1.0)


class SLiCPolicy(SLiCObjective, PolicyModule):
    """A policy calibrated to comparisons by a hinge."""


class SimPOPolicy(SimPOObjective, PolicyModule):
    """A policy whose mean log-probabilities follow comparisons."""


class CPOPolicy(CPOObjective, PolicyModule):
    """A policy that learned from comparisons and imitates the chosen."""


class ORPOPolicy(ORPOObjective, PolicyModule):
    """A policy that imitates the chosen and avoids the rejected, from the start and in one stage."""
