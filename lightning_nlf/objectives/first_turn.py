"""Self-distillation by the first turn: revisions are learned as replies to the prompt alone, by what they gained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import masked_mean, row_sums
from lightning_nlf.numbers import NonNegative, Number
from lightning_nlf.objective import Evaluation, Objective, Terms
from lightning_nlf.objectives.policy_gradient import ReinforcePolicy, group_mean


def first_turn_loss(
    log_probs: Tensor, advantages: Tensor, mask: Tensor, floor: float, total: Tensor | None = None
) -> Tensor:
    """−E[1(log π ≥ floor) A log π(y₁|x)]: RLTF-SD, §3 of https://arxiv.org/abs/2602.02482, without importance weights.

    A token that the policy would hardly say gives no gradient, as log π falls without bound there. It still counts in
    the mean: what it is a mean over is a matter of the rows, and not of how the policy stands.
    Args: log_probs, advantages, mask (B, T).  Returns ().
    """
    kept = log_probs.detach() >= floor
    return -masked_mean(torch.where(kept, log_probs * advantages, 0), mask, total)


def first_turn_advantages(earned: Tensor, batch: Batch) -> Tensor:
    """A = R(y₁) − mean R(y₀) over the group's attempts: https://arxiv.org/abs/2602.02482.

    Against the mean of the revisions themselves nothing would be learned as soon as all of them are right. A group
    without attempts of the learner has the baseline 0.
    Args: earned (B,): R.  Returns (B,).
    """
    return earned - group_mean(earned[:, None].expand(batch.mask.shape), batch)[:, 0]


def revision_steps(batch: Batch) -> Tensor:
    """(B, T) bool: what was said in the rows that are revisions, by `extra["revision"]` (B,).

    Raises:
        ValueError: nobody says which rows are.
    """
    if "revision" not in batch.extra:
        raise ValueError("the batch does not say which of its rows are revisions (`extra.revision`)")
    return batch.valid & batch.extra["revision"][:, None]


class FirstTurnObjective(Objective):
    """Revisions, behind the prompt alone: more likely where they earn more than the attempts did, else less.

    Whose they are does not matter. Joined with a policy gradient on the attempts.

    Args:
        distillation_weight: of the term.
        floor: tokens of less than this log-probability are left out.
    """

    def __init__(self, distillation_weight: NonNegative = 0.1, floor: Number = -5.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distillation_weight, self.floor = distillation_weight, floor

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Raises ValueError: no revisions, or no rewards of them."""
        batch = batch.to(self.device)
        if batch.rewards is None:
            raise ValueError("the batch has no rewards, and what a revision gained is not known without")
        revised = revision_steps(batch)
        advantages = first_turn_advantages(row_sums(batch.rewards, batch.valid), batch)  # before any penalty
        batch = super().prepare(batch)
        known = revised if batch.expert_mask is None else revised | batch.expert_mask  # where the policy is evaluated
        more = {"revised": revised, "first_turn_advantages": advantages}
        return replace(batch, expert_mask=known, extra=batch.extra | more)

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        """Notes the share of the tokens that are left out."""
        revised, advantages = batch.extra["revised"], batch.extra["first_turn_advantages"][:, None]
        total = batch.totals.get("revised")
        loss = first_turn_loss(now.log_probs, advantages, revised, self.floor, total)
        below = (now.log_probs.detach() < self.floor).to(loss.dtype)
        now.notes["below_floor"] = masked_mean(below, revised, total)
        now.over |= dict.fromkeys(("self_distillation", "below_floor"), "revised")
        return super().terms(batch, now) | {"self_distillation": self.distillation_weight * loss}


class FirstTurnPolicy(FirstTurnObjective, ReinforcePolicy):
    """RLTF-SD: policy gradient on the attempts, self-distillation from the revisions."""
