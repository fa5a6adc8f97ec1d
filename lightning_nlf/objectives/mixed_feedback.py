"""One file of feedback, whatever its lines have: each kind has a term of its own, over what it is known of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lightning_nlf.batch import Batch
from lightning_nlf.functional import masked_mean
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative
from lightning_nlf.objective import Evaluation, Terms
from lightning_nlf.objectives.dpo import DPOObjective
from lightning_nlf.objectives.held_out import HeldOutObjective
from lightning_nlf.objectives.imitation import ImitationObjective
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective


class CritiqueObjective(HeldOutObjective):
    """Predicts the critique of a reply: feedback modelling, log π(c|x, y), https://arxiv.org/abs/2501.17703.

    The expert's steps in rows of `extra["critique"]` (B,) have this term, and an imitation behind it has the others.

    Args:
        critique_weight: of the term.
    """

    def __init__(self, critique_weight: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.critique_weight = critique_weight

    def complete(self, batch: Batch) -> Batch:
        """Marks the steps, so that a loader counts them."""
        batch = super().complete(batch)
        expert = torch.zeros_like(batch.mask) if batch.expert_mask is None else batch.expert_mask
        critiques = batch.extra.get("critique", torch.zeros_like(batch.mask[:, 0]))[:, None]
        own = {"critique_steps": expert & critiques, "imitated_steps": expert & ~critiques}
        return replace(batch, extra=batch.extra | own)

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        own, others = batch.extra["critique_steps"], batch.extra["imitated_steps"]
        loss = -masked_mean(now.log_probs, own, batch.totals.get("critique_steps"))
        now.over["critique"] = "critique_steps"
        totals = batch.totals | ({"expert_mask": batch.totals["imitated_steps"]} if batch.totals else {})
        rest = super().terms(replace(batch, expert_mask=others, totals=totals), now)
        now.over |= {name: "imitated_steps" for name, mask in now.over.items() if mask == "expert_mask"}
        return rest | {"critique": self.critique_weight * loss}


class ScoredObjective(PolicyGradientObjective):
    """Policy gradient on the replies that have a score, by `extra["scored"]` (B,): to have none is no score of 0.

    Held-out rows earned nothing, and have no term.
    """

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Raises ValueError: the rows do not say which of them have a score."""
        batch = batch.to(self.device)
        if "scored" not in batch.extra:
            raise ValueError("the batch does not say which of its rows have a score (`extra.scored`)")
        scored = batch.mask & batch.extra["scored"][:, None]
        more = batch.extra | {"scored_steps": scored}
        prepared = super().prepare(replace(batch, mask=scored, extra=more))
        return replace(prepared, mask=batch.mask)

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        if batch.advantages is None:
            return super(PolicyGradientObjective, self).terms(batch, now)
        totals = batch.totals | ({"mask": batch.totals["scored_steps"]} if batch.totals else {})
        terms = super().terms(replace(batch, mask=batch.extra["scored_steps"], totals=totals), now)
        now.over |= {name: "scored_steps" for name, mask in now.over.items() if mask == "mask"}
        return terms


class MixedFeedbackPolicy(DPOObjective, CritiqueObjective, ImitationObjective, ScoredObjective, PolicyModule):
    """Scores by policy gradient, expected responses by imitation, critiques by predicting them, rankings by DPO.

    Each term is a mean over its own steps or pairs, so it is what it would be if the other lines were not there.
    """

    measured = (*DPOObjective.measured, "imitation", "critique")
