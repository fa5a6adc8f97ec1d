"""Imitation of an expert where it did better than the learner does by itself."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.objective import Objective
from lightning_nlf.objectives.baselines import refuse_unscored
from lightning_nlf.objectives.imitation import ImitationObjective
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective


def better_than_own(score: Tensor, group: Tensor, own: Tensor) -> Tensor:
    """(B,) bool: the row scores more than the mean of the learner's own rows of its group; True where there are none.

    Args: score (B,); group (B,) int; own (B,) bool, rows in which only the learner decided.
    """
    same = ((group[:, None] == group[None, :]) & own[None, :]).double()
    count = same.sum(1)
    mean = same @ torch.where(own, score, 0).double() / count.clamp(min=1)  # of equals, it is that number
    return (count == 0) | (score.double() > mean)


class FilteredImitationObjective(Objective):
    """Takes rows in which an expert spoke out of `expert_mask` unless they are better than the learner's own.

    A row's worth is its `score`, else its undiscounted return. Labels on rows of the learner's own, and rows alone in
    their group, stay.

    Raises:
        ValueError: at `prepare` a batch without `group`, or without score and rewards, or a score that is not known.
    """

    needs: tuple[type, ...] = (ImitationObjective,)

    def select(self, batch: Batch) -> Batch:
        """Imitate an expert's row only where it is better than the learner's own."""
        if batch.expert_mask is None:
            return batch
        if batch.group is None:
            raise ValueError("the batch has no `group`, so an expert's row is not to be compared with the learner's")
        if batch.score is not None:
            refuse_unscored(batch, batch.valid.any(1))
            score = batch.score
        elif batch.rewards is not None:
            score = row_sums(batch.rewards, batch.valid)
        else:
            raise ValueError("the batch has neither `score` nor `rewards`, so no row is better than another")
        experts = (batch.valid & ~batch.mask).any(1)
        kept = ~experts | better_than_own(score, batch.group, batch.mask.any(1) & ~experts)
        share, of = self.sum_over_ranks(torch.stack([(experts & kept).sum(), experts.sum()]).float())
        self.note("kept", share / of.clamp(min=1), bool(of > 0))
        return replace(batch, expert_mask=batch.expert_mask & kept[:, None])


class FilteredJointPolicy(FilteredImitationObjective, ImitationObjective, PolicyGradientObjective, PolicyModule):
    """The joint objective, or injection, with imitation of what the expert did better."""
