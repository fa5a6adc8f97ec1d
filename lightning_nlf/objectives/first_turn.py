"""Self-distillation by the first turn: revisions are learned as replies to the prompt alone, by what they gained."""

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
    """−1(log π ≥ floor) A log π(y₁|x): RLTF-SD, §3 of https://arxiv.org/abs/2602.02482, without importance weights.

    A token that the policy would hardly say gives no gradient, as log π falls without bound there. It still counts in
    the mean: what it is a mean over is a matter of the rows, and not of how the policy stands.
    Args: log_probs (B, T); advantages (B,).  Returns (B, T).
    """
    check_shapes(1, advantages=advantages, rows=log_probs[:, 0])
    return torch.where(log_probs.detach() >= floor, -log_probs * advantages[:, None], 0)


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

    needs: tuple[type, ...] = (PolicyModule,)

    def __init__(self, distillation_weight: NonNegative = 0.1, floor: Number = -5.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distillation_weight, self.floor = distillation_weight, floor

    def annotate(self, batch: Batch) -> Batch:
        """What the revisions gained, before any penalty of the rewards.

        Raises ValueError: no revisions, or no rewards of them.
        """
        if batch.rewards is None:
            raise ValueError(
                "the batch has no rewards, and what a revision gained is not known without: "
                "nobody pays, so give the data a reward"
            )
        revision_steps(batch)
        advantages = first_turn_advantages(row_sums(batch.rewards, batch.valid), batch)
        return batch.with_extra(first_turn_advantages=advantages)

    def masks(self, batch: Batch) -> Batch:
        """`revised`: the steps of revisions."""
        return batch.with_masks(revised=revision_steps(batch))

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        """Beside the loss the share of the tokens that are left out."""
        loss = first_turn_loss(now.log_probs, batch.extra["first_turn_advantages"], self.floor)
        below = (now.log_probs.detach() < self.floor).to(loss.dtype)
        yield Term("below_floor", below, "revised", logged_only=True)
        yield Term("self_distillation", loss, "revised", weight=self.distillation_weight)


class FirstTurnPolicy(FirstTurnObjective, PolicyGradientObjective, PolicyModule):
    """RLTF-SD: policy gradient on the attempts, self-distillation from the revisions."""
