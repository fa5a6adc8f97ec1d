"""Mixed feedback in one file: scores, rankings, expected responses and critiques, with a loss term for each kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from lightning_nlf.batch import Batch
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative
from lightning_nlf.objective import Best, Evaluation, Objective, Term
from lightning_nlf.objectives.dpo import DPOObjective
from lightning_nlf.objectives.imitation import ImitationObjective
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective, refuse_replies
from lightning_nlf.objectives.reference import ReferenceObjective


class CritiqueObjective(Objective):
    """Feedback modelling: predict the critique of a reply, log π(c|x, y), https://arxiv.org/abs/2501.17703.

    Applies to the expert's steps in rows marked in `extra["critique"]` (B,). An imitation objective covers the expert's
    other steps.

    Args:
        critique_weight: weight of the feedback-modelling loss.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    feedback: tuple[str, ...] = ("critique",)
    reports: tuple[str, ...] = ("critique",)

    def __init__(self, critique_weight: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.critique_weight = critique_weight
        self.imitation_over = "imitated_steps"

    def masks(self, batch: Batch) -> Batch:
        """Add the masks `critique_steps` and `imitated_steps`: the expert's steps inside and outside critiques."""
        expert = torch.zeros_like(batch.mask) if batch.expert_mask is None else batch.expert_mask
        critiques = batch.extra.get("critique", torch.zeros_like(batch.mask[:, 0]))[:, None]
        return batch.with_masks(critique_steps=expert & critiques, imitated_steps=expert & ~critiques)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        yield Term("critique", -now.log_probs, "critique_steps", weight=self.critique_weight)


class ScoredObjective(Objective):
    """Policy gradient only on replies with a score, marked in `extra["scored"]` (B,).

    A missing score is not a score of 0.

    Raises:
        ValueError: in `prepare`, the batch has no `extra["scored"]`.
    """

    needs: tuple[type, ...] = (PolicyGradientObjective,)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        refuse_replies(self, "scored_steps")
        self.policy_over = "scored_steps"

    def select(self, batch: Batch) -> Batch:
        """Refuse a batch that does not mark which rows have a score. All rows are kept.

        If no row has a score, all rewards are 0.
        """
        if "scored" not in batch.extra:
            raise ValueError("the batch has no `extra.scored` (B,), which marks the rows with a score")
        if batch.rewards is None and not batch.extra["scored"].any():  # no step is averaged over
            return replace(batch, rewards=torch.zeros_like(batch.mask, dtype=torch.float32))
        return batch

    def masks(self, batch: Batch) -> Batch:
        """Add the mask `scored_steps`: the learner's steps in rows with a score."""
        scored = batch.extra.get("scored", torch.zeros_like(batch.mask[:, 0]))
        return batch.with_masks(scored_steps=batch.mask & scored[:, None])


class MixedFeedbackPolicy(
    CritiqueObjective,
    DPOObjective,
    ImitationObjective,
    ReferenceObjective,
    ScoredObjective,
    PolicyGradientObjective,
    PolicyModule,
):
    """Mixed feedback policy: policy gradient on scores, imitation, feedback modelling of critiques, DPO on rankings.

    Each term is a mean over its own steps or pairs, so that the other kinds of feedback do not change it. A kind of
    feedback may be missing from all rows; its term is then 0.
    """

    best: Best = ("imitation", "min")
    needs_pairs = False  # a file may have no ranking
    imitation_accuracy = "imitation_accuracy"  # `accuracy` already names the accuracy of preferences
    measures: tuple[str, ...] = ("imitation_accuracy",)
