"""Rejection sampling: imitate the best replies of the policy itself. On rollouts, this is expert iteration."""

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
    """(B,) bool: the row is among the best ⌈top · K⌉ of the K rows in its group.

    All rows tied with the last of these are included.

    Args: score, group (B,); top in (0, 1]. Rows with a NaN score are never selected, and K does not count them.
    """
    scored = ~score.isnan()
    peers = (group[:, None] == group[None, :]) & scored[None, :]
    higher = (peers & (score[None, :] > score[:, None])).sum(1)
    # In floating point, .3 · 10 can be slightly above 3.
    return scored & (higher < (top * peers.sum(1) - 1e-6).ceil())


class BestOfGroupObjective(Objective):
    """Best-of-group selection: turns the learner's best rows into expert rows, and removes its other rows from `mask`.

    Rows are compared by `score`, or by undiscounted return if there is no score. Expected responses are kept. Combine
    with an imitation with `divergence: nll`. Objectives that learn from the learner's other rows are excluded, because
    these rows are removed.

    Args:
        top: share of each group to keep, at least one row.
        above: keep only rows whose score is higher than this value, such as successes.
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
        """Turn the best rows of each group into expert rows. The learner's other rows are removed from `mask`."""
        selected = self.best_rows(batch)[:, None] & batch.mask
        rows = torch.stack([selected.any(1).sum(), batch.mask.any(1).sum()])
        share, of = self.sum_over_ranks(rows.float())
        self.note("kept", share / of.clamp(min=1))
        batch = replace(batch, mask=torch.zeros_like(selected))
        if batch.expert_mask is None:
            return replace(batch, expert_actions=batch.actions, expert_mask=selected)
        assert batch.expert_actions is not None
        expanded = selected.view(*selected.shape, *[1] * (batch.actions.ndim - 2))
        actions = torch.where(expanded, batch.actions, batch.expert_actions)
        return replace(batch, expert_actions=actions, expert_mask=batch.expert_mask | selected)

    def best_rows(self, batch: Batch) -> Tensor:
        """(B,) bool: the best rows of each group.  Raises ValueError: the batch has neither scores nor rewards."""
        if batch.score is not None:
            score = batch.score
        elif batch.rewards is not None:
            score = row_sums(batch.rewards, batch.valid)
        else:
            raise ValueError("the batch has neither `score` nor `rewards`, so rows cannot be compared; add one")
        score = torch.where(batch.mask.any(1), score, math.nan)
        group = torch.zeros_like(score) if batch.group is None else batch.group
        best = best_of_group(score, group, self.top)
        return best if self.above is None else best & (score > self.above)


class RejectionSamplingPolicy(BestOfGroupObjective, ImitationObjective, PolicyModule):
    """Expert iteration on rollouts, best-of-n fine-tuning on the rows of a file. Needs `divergence: nll`."""
