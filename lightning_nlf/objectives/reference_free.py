"""Preferences without a reference: SLiC, SimPO, CPO, ORPO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import check_shapes
from lightning_nlf.maths.preferences import rankings
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Positive
from lightning_nlf.objective import Evaluation, Term
from lightning_nlf.objectives.direct_preference import DirectPreferenceObjective, reply_steps
from lightning_nlf.objectives.dpo import dpo_loss


def slic_loss(difference: Tensor, margin: float) -> Tensor:
    """max(0, δ − h), h = log π of the chosen minus that of the rejected: https://arxiv.org/abs/2305.10425.  (P,)"""
    check_shapes(1, difference=difference)
    return (margin - difference).clamp(min=0)


def simpo_loss(difference: Tensor, beta: float, margin: float) -> Tensor:
    """−log σ(βh − γ), h the difference of mean log-probabilities a token: eq. 6 of https://arxiv.org/abs/2405.14734.

    difference h (P,) → (P,)
    """
    check_shapes(1, difference=difference)
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


def reply_log_probs(batch: Batch, now: Evaluation, per_token: bool) -> Tensor:
    """log π of each reply, (B,); its mean a token with `per_token`."""
    steps = reply_steps(batch)
    log_probs = row_sums(now.log_probs, steps)
    return log_probs / steps.sum(1).clamp(min=1) if per_token else log_probs


class ReferenceFreeObjective(DirectPreferenceObjective):
    """Held in place by the likelihood of the chosen replies, if by anything: the reference costs nothing.

    Args: chosen_weight: of the chosen replies' negative log-likelihood, in the mean over their tokens.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    reports: tuple[str, ...] = ("chosen",)
    per_token = False  # compares mean log-probabilities a token instead of a reply's

    def __init__(self, chosen_weight: NonNegative = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.chosen_weight = chosen_weight

    def fitness(self, batch: Batch, now: Evaluation) -> Tensor:
        return reply_log_probs(batch, now, self.per_token)

    def masks(self, batch: Batch) -> Batch:
        """`chosen`: the replies that nothing beats, in groups where something is beaten."""
        return batch.with_masks(chosen=best_replies(batch))

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        if self.chosen_weight:
            yield Term("chosen", -now.log_probs, "chosen", weight=self.chosen_weight)


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

    per_token = True

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

    per_token = True

    def __init__(self, odds_weight: NonNegative = 0.1, chosen_weight: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(chosen_weight=chosen_weight, **kwargs)
        self.odds_weight = odds_weight

    def fitness(self, batch: Batch, now: Evaluation) -> Tensor:
        return log_odds(reply_log_probs(batch, now, per_token=True))

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
