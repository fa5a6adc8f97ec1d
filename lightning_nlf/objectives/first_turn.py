"""First-turn self-distillation (RLTF-SD): learn revisions as replies to the prompt alone, weighted by their gain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import check_shapes
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Number
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.objectives.baselines import group_mean
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective


def first_turn_loss(log_probs: Tensor, advantages: Tensor, floor: float) -> Tensor:
    """First-turn loss −1(log π ≥ floor) A log π(y₁|x): RLTF-SD, §3 of https://arxiv.org/abs/2602.02482.

    There are no importance weights. Tokens below the floor have no gradient, because log π is unbounded below. These
    tokens still count in the mean, so that the divisor depends on the rows and not on the policy.
    Args: log_probs (B, T); advantages (B,).  Returns (B, T).
    """
    check_shapes(1, advantages=advantages, rows=log_probs[:, 0])
    return torch.where(log_probs.detach() >= floor, -log_probs * advantages[:, None], 0)


def first_turn_advantages(earned: Tensor, batch: Batch) -> Tensor:
    """Advantages A = R(y₁) − mean R(y₀) over the group's attempts: https://arxiv.org/abs/2602.02482.

    If the baseline were the mean of the revisions, nothing would be learned once all revisions are right. The baseline
    is 0 in a group without attempts of the learner.
    Args: earned (B,): the return R of each row.  Returns (B,).
    """
    return earned - group_mean(earned[:, None].expand(batch.mask.shape), batch)[:, 0]


def revision_steps(batch: Batch) -> Tensor:
    """(B, T) bool: the steps of revisions, which are the rows marked in `extra["revision"]` (B,).

    Raises:
        ValueError: the batch has no `extra["revision"]`.
    """
    if "revision" not in batch.extra:
        raise ValueError("the batch has no `extra.revision` (B,), which marks the rows that are revisions")
    return batch.valid & batch.extra["revision"][:, None]


class FirstTurnObjective(Objective):
    """First-turn self-distillation: learn revisions without the critique.

    A revision becomes more likely, given the prompt alone, if it earns more than the attempts did. Otherwise it becomes
    less likely.

    The revisions may come from any reviser. Combine with a policy gradient on the attempts.

    Args:
        distillation_weight: weight of the first-turn loss.
        floor: tokens with a lower log-probability have no gradient.
    """

    needs: tuple[type, ...] = (PolicyModule,)

    def __init__(self, distillation_weight: NonNegative = 0.1, floor: Number = -5.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distillation_weight, self.floor = distillation_weight, floor

    def annotate(self, batch: Batch) -> Batch:
        """Compute the advantages of the revisions, before any penalty is subtracted from the rewards.

        Raises ValueError: the batch has no revisions or no rewards.
        """
        if batch.rewards is None:
            raise ValueError("the batch has no rewards, so the gain of a revision is unknown; give the data a reward")
        revision_steps(batch)
        advantages = first_turn_advantages(row_sums(batch.rewards, batch.valid), batch)
        return batch.with_extra(first_turn_advantages=advantages)

    def masks(self, batch: Batch) -> Batch:
        """Add the mask `revised`: the steps of revisions."""
        return batch.with_masks(revised=revision_steps(batch))

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        """The loss, and the share of tokens below the floor."""
        loss = first_turn_loss(now.log_probs, batch.extra["first_turn_advantages"], self.floor)
        below = (now.log_probs.detach() < self.floor).to(loss.dtype)
        yield Term("below_floor", below, "revised", logged_only=True)
        yield Term("self_distillation", loss, "revised", weight=self.distillation_weight)


class FirstTurnPolicy(FirstTurnObjective, PolicyGradientObjective, PolicyModule):
    """RLTF-SD policy: policy gradient on attempts, self-distillation from revisions."""
