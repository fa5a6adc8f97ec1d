"""Attempts and their revisions in one group: the revisions are learned as injected, behind the prompt alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import row_sums
from lightning_nlf.numbers import Positive
from lightning_nlf.objective import Evaluation, Terms
from lightning_nlf.objectives.first_turn import revision_steps
from lightning_nlf.objectives.injection import ShapedInjectionObjective
from lightning_nlf.objectives.policy_gradient import ReinforcePolicy, shared_group_mean


def shared_advantages(earned: Tensor, batch: Batch) -> Tensor:
    """R − mean R of the group, attempts and revisions alike: §4 of https://arxiv.org/abs/2506.03106.

    Not divided by the deviation, as there.
    Args: earned (B,): R.  Returns (B,).
    """
    return earned - shared_group_mean(earned[:, None].expand(batch.mask.shape), batch)[:, 0]


class CritiqueGRPOObjective(ShapedInjectionObjective):
    """Policy gradient on the attempts; on the revisions −E[f(π)A], f(π) = π/(π + g), π without the critique.

    Critique-GRPO, https://arxiv.org/abs/2506.03106. Both terms are parts of one mean, over the steps of all. The
    baseline is `shared_advantages`, so the policy gradient's own is left out. Stands before it.

    Args:
        shape: g.
        injected_weight: of the revisions, or a schedule of it.

    Raises:
        ValueError: a baseline or a scale of advantages.
    """

    def __init__(self, shape: Positive = 0.1, normalize_advantages: bool = False, **kwargs: Any) -> None:
        super().__init__(shape=shape, relative=False, normalize_advantages=normalize_advantages, **kwargs)
        for knob in ("baseline", "advantage_scale"):
            if getattr(self, knob) != "none":
                raise ValueError(f"{knob}: got {getattr(self, knob)}, and the mean of attempts and revisions is there")

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Raises ValueError: no revisions, no rewards, or rows of another kind."""
        batch = batch.to(self.device)
        if batch.rewards is None:
            raise ValueError("the batch has no rewards, and neither attempts nor revisions are better than others")
        revised = revision_steps(batch)
        if (batch.valid & ~batch.mask & ~revised).any():
            raise ValueError("the batch has rows that are neither attempts nor revisions, which nothing here learns")
        advantages = shared_advantages(row_sums(batch.rewards, batch.valid), batch)
        advantages = torch.where(batch.valid, advantages[:, None], 0)
        known = revised if batch.expert_mask is None else revised | batch.expert_mask  # where the policy is evaluated
        return super().prepare(replace(batch, expert_mask=known, advantages=advantages))

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        terms = super().terms(batch, now)
        masks = {"policy": ("mask", batch.mask), "injected": ("injected", batch.valid & ~batch.mask)}
        counts = {term: batch.totals.get(name, mask.sum()) for term, (name, mask) in masks.items()}
        everyone = counts["policy"] + counts["injected"]
        parts = {term: terms[term] * count / torch.where(everyone > 0, everyone, 1) for term, count in counts.items()}
        return terms | parts


class CritiqueGRPOPolicy(CritiqueGRPOObjective, ReinforcePolicy):
    """Critique-GRPO; with the clipped surrogate on the attempts by `clip`."""
