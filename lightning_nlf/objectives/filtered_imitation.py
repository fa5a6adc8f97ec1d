"""Filtered imitation: imitate an expert's reply only if it is better than the learner's own replies."""

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


def better_than_learner(score: Tensor, group: Tensor, learner_rows: Tensor) -> Tensor:
    """(B,) bool: the row scores more than the mean of the learner's rows in its group, or the group has no such rows.

    Args: score (B,); group (B,) int; learner_rows (B,) bool, rows in which only the learner decided.
    """
    members = ((group[:, None] == group[None, :]) & learner_rows[None, :]).double()
    count = members.sum(1)
    mean = members @ torch.where(learner_rows, score, 0).double() / count.clamp(min=1)  # exact for equal scores
    return (count == 0) | (score.double() > mean)


class FilteredImitationObjective(Objective):
    """Filtered imitation: removes an expert's row from `expert_mask` unless it beats the learner's rows in its group.

    Rows are compared by `score`, or by undiscounted return if there is no score. Labels on the learner's rows and
    rows that are alone in their group are kept.

    Raises:
        ValueError: in `prepare`, the batch has no `group`, has neither scores nor rewards, or has an unknown (NaN)
            score.
    """

    needs: tuple[type, ...] = (ImitationObjective,)

    def select(self, batch: Batch) -> Batch:
        """Keep an expert's row only if the row is better than the learner's rows in its group."""
        if batch.expert_mask is None:
            return batch
        if batch.group is None:
            raise ValueError("the batch has no `group`, so expert and learner rows cannot be compared")
        if batch.score is not None:
            refuse_unscored(batch, batch.valid.any(1))
            score = batch.score
        elif batch.rewards is not None:
            score = row_sums(batch.rewards, batch.valid)
        else:
            raise ValueError("the batch has neither `score` nor `rewards`, so rows cannot be compared; add one")
        experts = (batch.valid & ~batch.mask).any(1)
        selected = ~experts | better_than_learner(score, batch.group, batch.mask.any(1) & ~experts)
        share, of = self.sum_over_ranks(torch.stack([(experts & selected).sum(), experts.sum()]).float())
        self.note("kept", share / of.clamp(min=1), bool(of > 0))
        return replace(batch, expert_mask=batch.expert_mask & selected[:, None])


class FilteredJointPolicy(FilteredImitationObjective, ImitationObjective, PolicyGradientObjective, PolicyModule):
    """Joint policy gradient, or injection, with imitation of expert rows that are better than the learner's."""
