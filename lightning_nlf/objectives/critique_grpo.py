"""Attempts and their revisions in one group: the revisions are learned as injected, behind the prompt alone."""

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
    """R − mean R of the group, attempts and revisions alike: §4 of https://arxiv.org/abs/2506.03106.

    Not divided by the deviation, as there.
    Args: earned (B,): R.  Returns (B,).
    """
    return earned - shared_group_mean(earned[:, None].expand(batch.mask.shape), batch)[:, 0]


class CritiqueGRPOObjective(Objective):
    """Policy gradient on the attempts; on the revisions −E[f(π)A], f(π) = π/(π + g), π without the critique.

    Critique-GRPO, https://arxiv.org/abs/2506.03106. Both terms are parts of one mean, over the steps of all. The
    baseline is `shared_advantages`, which takes the place of the policy gradient's own.

    Raises:
        ValueError: a baseline or a scale of advantages; at `prepare` no revisions, no rewards, or rows of another kind.
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
                raise ValueError(f"{name}: got {value}, and the mean of attempts and revisions is there")
        self.policy_per = self.injected_per = "valid"

    def select(self, batch: Batch) -> Batch:
        """Refuse rows that are neither attempts nor revisions; every row stays."""
        if (batch.valid & ~batch.mask & ~revision_steps(batch)).any():
            raise ValueError("the batch has rows that are neither attempts nor revisions, which nothing here learns")
        return batch

    def estimate(self, batch: Batch) -> Batch:
        if batch.rewards is None:
            raise ValueError(
                "the batch has no rewards, and neither attempts nor revisions are better than others: "
                "nobody pays, so give the data a reward"
            )
        advantages = shared_advantages(row_sums(batch.rewards, batch.valid), batch)
        return replace(batch, advantages=torch.where(batch.valid, advantages[:, None], 0))


class CritiqueGRPOPolicy(CritiqueGRPOObjective, ShapedInjectionObjective, PolicyGradientObjective, PolicyModule):
    """Critique-GRPO; with the clipped surrogate on the attempts by `clip`, and `shape` for g."""

    def __init__(self, relative: bool = False, normalize_advantages: bool = False, **kwargs: Any) -> None:
        super().__init__(relative=relative, normalize_advantages=normalize_advantages, **kwargs)
