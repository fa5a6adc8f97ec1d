"""A whole response as one action: language as a bandit instead of a chain of tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import row_sums
from lightning_nlf.objective import Evaluation, Terms
from lightning_nlf.objectives.kl_penalty import KLLossObjective, KLPenaltyObjective
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective, ReinforcePolicy


def first_step(mask: Tensor) -> Tensor:
    """(B, T) bool: each row's first True step; none in a row without one."""
    return mask & (mask.cumsum(1) == 1)


def at_first(x: Tensor, mask: Tensor, where: Tensor | None = None) -> Tensor:
    """Σ x over `where` (by default `mask`) at the first True step of `mask`, 0 elsewhere.  All (B, T)"""
    return torch.where(first_step(mask), row_sums(x, mask if where is None else where)[:, None], 0)


class OneStepObjective(PolicyGradientObjective):
    """The policy gradient of one decision a row: its action is the response, at the prompt.

    Its log-probability is the sum over the tokens, its reward that of the row, a ratio the product over the tokens
    (RLOO, https://arxiv.org/abs/2402.14740), its baseline V of the prompt if there is a critic; so γ and λ do not
    matter. Terms are means over responses, not tokens, and a response is one step to schedules too. At γ = 1 the
    gradient is that of the token form where the reward comes at the end, and equal in the mean otherwise.
    """

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        batch = batch.to(self.device)
        if batch.rewards is None:
            raise ValueError("the batch has no rewards, and policy gradient learns from nothing else")
        first = first_step(batch.mask)
        one = replace(
            batch,
            valid=first,
            mask=first,
            rewards=at_first(batch.rewards, batch.mask, batch.valid),
            terminated=torch.ones(len(batch), dtype=torch.bool, device=first.device),  # nothing follows a response
            extra=batch.extra | {"responses": batch.mask.any(1)},  # counted by the loader: what terms are means over
        )
        prepared = super().prepare(one)
        return replace(prepared, valid=batch.valid, mask=batch.mask, rewards=batch.rewards, terminated=batch.terminated)

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        first = first_step(batch.mask)
        old = None if batch.log_probs is None else at_first(batch.log_probs, batch.mask)
        totals = batch.totals | ({"mask": batch.totals["responses"]} if batch.totals else {})
        whole = replace(now, log_probs=at_first(now.log_probs, batch.mask))
        if self.entropy_weight:
            whole.entropy = at_first(now.entropy, batch.mask)
        return super().terms(replace(batch, mask=first, log_probs=old, totals=totals), whole)


class OneStepRLHFPolicy(KLPenaltyObjective, KLLossObjective, OneStepObjective, ReinforcePolicy):
    """REINFORCE or RLOO over whole responses, on a leash."""
