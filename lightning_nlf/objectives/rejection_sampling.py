"""Rejection sampling: imitate the best of what the policy itself said; on rollouts this is expert iteration."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import Number, PositiveShare
from lightning_nlf.objective import Objective
from lightning_nlf.objectives.direct_preference import DirectPreferenceObjective
from lightning_nlf.objectives.first_turn import FirstTurnObjective
from lightning_nlf.objectives.imitation import ImitationObjective
from lightning_nlf.objectives.kto import KTOObjective
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective
from lightning_nlf.objectives.self_distillation import TeacherObjective
from lightning_nlf.objectives.unlikelihood import UnlikelihoodObjective


def best_of_group(score: Tensor, group: Tensor, top: float) -> Tensor:
    """(B,) bool: fewer than ⌈top · K⌉ rows of the row's group of K score higher. So ties at the edge all stay.

    Args: score, group (B,); top in (0, 1]. A score of NaN is never among the best, and counts for no K.
    """
    scored = ~score.isnan()
    same = (group[:, None] == group[None, :]) & scored[None, :]
    higher = (same & (score[None, :] > score[:, None])).sum(1)
    # .3 · 10 is a hair above 3 as a float
    return scored & (higher < (top * same.sum(1) - 1e-6).ceil())


class BestOfGroupObjective(Objective):
    """Keeps the best of the learner's rows as if an expert had written them, and drops the others from `mask`.

    What it goes by is `score`, else the undiscounted return. Expected responses stay. Joined with an imitation whose
    divergence is `nll`. No objective that learns from the learner's other rows can be combined with it: they are gone.

    Args:
        top: share of each group that is kept, at least one row.
        above: only rows that score more than this, such as the successes.
    """

    needs: tuple[type, ...] = (ImitationObjective,)
    excludes: tuple[type, ...] = (
        PolicyGradientObjective,
        DirectPreferenceObjective,
        KTOObjective,
        UnlikelihoodObjective,
        TeacherObjective,
        FirstTurnObjective,
    )

    def __init__(self, top: PositiveShare = 0.25, above: Number | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < top <= 1:
            raise ValueError(f"top: got {top}, must be above 0 and at most 1")
        self.top, self.above = top, above

    def select(self, batch: Batch) -> Batch:
        """Keep the best of each group as expert's rows; nothing else is learned from."""
        kept = self.kept(batch)[:, None] & batch.mask
        rows = torch.stack([kept.any(1).sum(), batch.mask.any(1).sum()])
        share, of = self.sum_over_ranks(rows.float())
        self.note("kept", share / of.clamp(min=1))
        if batch.expert_mask is None:
            return replace(batch, expert_actions=batch.actions, expert_mask=kept, mask=torch.zeros_like(kept))
        assert batch.expert_actions is not None
        more = kept.view(*kept.shape, *[1] * (batch.actions.ndim - 2))
        actions = torch.where(more, batch.actions, batch.expert_actions)
        return replace(batch, expert_actions=actions, expert_mask=batch.expert_mask | kept, mask=torch.zeros_like(kept))

    def kept(self, batch: Batch) -> Tensor:
        """(B,) bool.  Raises ValueError: neither scores nor rewards."""
        if batch.score is not None:
            score = batch.score
        elif batch.rewards is not None:
            score = row_sums(batch.rewards, batch.valid)
        else:
            raise ValueError("the batch has neither `score` nor `rewards`, so no row is better than another")
        score = torch.where(batch.mask.any(1), score, math.nan)
        group = torch.zeros_like(score) if batch.group is None else batch.group
        best = best_of_group(score, group, self.top)
        return best if self.above is None else best & (score > self.above)


class RejectionSamplingPolicy(BestOfGroupObjective, ImitationObjective, PolicyModule):
    """Expert iteration, on rollouts; best-of-n fine-tuning, on rows of a file. Needs `divergence: nll`."""
