"""Reference-free preference losses: SLiC, SimPO, CPO and ORPO."""

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
    """SLiC loss max(0, δ − h), h = log π(chosen reply) − log π(rejected reply).  difference h (P,) → (P,)

    Source: https://arxiv.org/abs/2305.10425.
    """
    check_shapes(1, difference=difference)
    return (margin - difference).clamp(min=0)


def simpo_loss(difference: Tensor, beta: float, margin: float) -> Tensor:
    """SimPO loss −log σ(βh − γ), where h is the difference of log-probabilities per token.  difference h (P,) → (P,)

    Source: eq. 6 of https://arxiv.org/abs/2405.14734.
    """
    check_shapes(1, difference=difference)
    return -F.logsigmoid(beta * difference - margin)


def log_odds(log_probs: Tensor) -> Tensor:
    """Log-odds log p/(1 − p) from log p < 0. p is clamped to 1 − 1e-6, because the odds of p = 1 are infinite."""
    log_probs = log_probs.clamp(max=-1e-6)
    return log_probs - torch.log(-torch.expm1(log_probs))


def best_replies(batch: Batch) -> Tensor:
    """(B, T) bool: the steps of the best replies, in groups that also have a reply of lower rank."""
    assert batch.group is not None and batch.rank is not None
    table = rankings(batch.group, batch.rank)  # (G, K), best first
    ranks = torch.where(table >= 0, batch.rank[table.clamp(min=0)], -1)
    best = (ranks == ranks[:, :1]) & (ranks < ranks.max(1, keepdim=True).values) & (table >= 0)
    chosen = torch.zeros_like(batch.mask[:, 0])
    chosen[table[best]] = True
    return chosen[:, None] & reply_steps(batch)


def reply_log_probs(batch: Batch, now: Evaluation, per_token: bool) -> Tensor:
    """log π of each reply, (B,). With `per_token`, the mean of log π over the tokens of each reply."""
    steps = reply_steps(batch)
    log_probs = row_sums(now.log_probs, steps)
    return log_probs / steps.sum(1).clamp(min=1) if per_token else log_probs


class ReferenceFreeObjective(DirectPreferenceObjective):
    """Preference learning without a reference model. The likelihood of the chosen replies can serve as a regulariser.

    Args: chosen_weight: weight of the negative log-likelihood of chosen replies, averaged over the tokens of these
        replies.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    reports: tuple[str, ...] = ("chosen",)
    per_token = False  # compare log-probabilities per token instead of per reply

    def __init__(self, chosen_weight: NonNegative = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.chosen_weight = chosen_weight

    def fitness(self, batch: Batch, now: Evaluation) -> Tensor:
        return reply_log_probs(batch, now, self.per_token)

    def masks(self, batch: Batch) -> Batch:
        """Add the mask `chosen`: the steps of `best_replies`."""
        return batch.with_masks(chosen=best_replies(batch))

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        if self.chosen_weight:
            yield Term("chosen", -now.log_probs, "chosen", weight=self.chosen_weight)


class SLiCObjective(ReferenceFreeObjective):
    """SLiC: `slic_loss`, regularised by the likelihood of the chosen replies.

    Args: margin: δ, by which the log-probability of the chosen reply should exceed that of the rejected reply.
    """

    def __init__(self, margin: NonNegative = 1.0, chosen_weight: NonNegative = 0.1, **kwargs: Any) -> None:
        super().__init__(chosen_weight=chosen_weight, **kwargs)
        self.margin = margin

    def pair_losses(self, difference: Tensor) -> Tensor:
        return slic_loss(difference, self.margin)


class SimPOObjective(ReferenceFreeObjective):
    """SimPO (`simpo_loss`).

    The implicit reward is β times the log-probability per token, which decoding also maximises.

    Args: beta: β of the implicit reward; margin: γ, by which the implicit reward of the chosen reply should exceed that
        of the rejected reply.
    """

    per_token = True

    def __init__(self, beta: Positive = 2.0, margin: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beta, self.margin = beta, margin

    def pair_losses(self, difference: Tensor) -> Tensor:
        return simpo_loss(difference, self.beta, self.margin)


class CPOObjective(ReferenceFreeObjective):
    """CPO: DPO with a uniform reference, plus the likelihood of the chosen replies: https://arxiv.org/abs/2401.08417.

    Args: beta: β of the implicit reward.
    """

    def __init__(self, beta: Positive = 0.1, chosen_weight: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(chosen_weight=chosen_weight, **kwargs)
        self.beta = beta

    def pair_losses(self, difference: Tensor) -> Tensor:
        return dpo_loss(difference, self.beta)


class ORPOObjective(ReferenceFreeObjective):
    """ORPO: the likelihood of the chosen replies, and the odds ratio of chosen and rejected replies.

    Eq. 6 and 7 of https://arxiv.org/abs/2403.07691, where p is the geometric mean of the token probabilities.
    Args: odds_weight: λ, the weight of the odds ratio loss.
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
    """SLiC policy, calibrated to comparisons with a hinge loss."""


class SimPOPolicy(SimPOObjective, PolicyModule):
    """SimPO policy, trained on comparisons of log-probabilities per token."""


class CPOPolicy(CPOObjective, PolicyModule):
    """CPO policy: learns from comparisons and imitates the chosen replies."""


class ORPOPolicy(ORPOObjective, PolicyModule):
    """ORPO policy: supervised fine-tuning and preference learning in one stage."""
