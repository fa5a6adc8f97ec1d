"""Critique-GRPO: policy gradient on attempts and on their revisions.

The critique is left out when revisions are learned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.objective import Objective
from lightning_nlf.objectives.baselines import shared_group_mean
from lightning_nlf.objectives.first_turn import revision_steps
from lightning_nlf.objectives.injection import ShapedInjectionObjective
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective


def shared_advantages(earned: Tensor, batch: Batch) -> Tensor:
    """Advantages R − mean R over attempts and revisions of the group (§4 of https://arxiv.org/abs/2506.03106).

    As in the paper, the advantages are not divided by the standard deviation.
    Args: earned (B,): the return R of each row.  Returns (B,).
    """
    return earned - shared_group_mean(earned[:, None].expand(batch.mask.shape), batch)[:, 0]


class CritiqueGRPOObjective(Objective):
    """Critique-GRPO: policy gradient on attempts, and −E[f(π)A] on revisions, with f(π) = π/(π + g).

    Source: https://arxiv.org/abs/2506.03106. π is the probability of the revision without the critique. Both terms are
    divided by the number of steps of all rows. `shared_advantages` replaces the policy gradient's own baseline.

    Raises:
        ValueError: a `baseline` or an `advantage_scale` is set; in `prepare`, the batch has no revisions, has no
            rewards, or has a row that is neither an attempt nor a revision.
    """

    needs: tuple[type, ...] = (ShapedInjectionObjective,)
    baseline: str
    advantage_scale: str
    policy_per: str | None
    injected_per: str | None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("baseline", self.baseline), ("advantage_scale", self.advantage_scale)):
            if value != "none":
                raise ValueError(f"{name}: got {value}, but the baseline is the mean of the group; remove {name}")
        self.policy_per = self.injected_per = "valid"

    def select(self, batch: Batch) -> Batch:
        """Refuse rows that are neither attempts nor revisions. All rows are kept."""
        if (batch.valid & ~batch.mask & ~revision_steps(batch)).any():
            raise ValueError("the batch has rows that are neither attempts nor revisions; remove them")
        return batch

    def estimate(self, batch: Batch) -> Batch:
        if batch.rewards is None:
            raise ValueError(
                "the batch has no rewards, so attempts and revisions cannot be compared; give the data a reward"
            )
        advantages = shared_advantages(row_sums(batch.rewards, batch.valid), batch)
        return replace(batch, advantages=torch.where(batch.valid, advantages[:, None], 0))


class CritiqueGRPOPolicy(CritiqueGRPOObjective, ShapedInjectionObjective, PolicyGradientObjective, PolicyModule):
    """Critique-GRPO policy. `clip` sets the clipped surrogate on the attempts, `shape` is g."""

    def __init__(self, relative: bool = False, normalize_advantages: bool = False, **kwargs: Any) -> None:
        super().__init__(relative=relative, normalize_advantages=normalize_advantages, **kwargs)
