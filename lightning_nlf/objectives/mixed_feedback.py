"""One file of feedback, whatever its lines have: each kind has a term of its own, over what it is known of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lightning_nlf.batch import Batch
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.objectives.dpo import DPOObjective
from lightning_nlf.objectives.imitation import ImitationObjective
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective, refuse_replies
from lightning_nlf.objectives.reference import ReferenceObjective


class CritiqueObjective(Objective):
    """Predicts the critique of a reply: feedback modelling, log π(c|x, y), https://arxiv.org/abs/2501.17703.

    The expert's steps in rows of `extra["critique"]` (B,) have this term; an imitation has the others.

    Args:
        critique_weight: of the term.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    reports: tuple[str, ...] = ("critique",)

    def __init__(self, critique_weight: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.critique_weight = critique_weight
        self.imitation_over = "imitated_steps"

    def masks(self, batch: Batch) -> Batch:
        """`critique_steps` of the expert, and `imitated_steps`, the others of the expert."""
        expert = torch.zeros_like(batch.mask) if batch.expert_mask is None else batch.expert_mask
        critiques = batch.extra.get("critique", torch.zeros_like(batch.mask[:, 0]))[:, None]
        return batch.with_masks(critique_steps=expert & critiques, imitated_steps=expert & ~critiques)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        yield Term("critique", -now.log_probs, "critique_steps", weight=self.critique_weight)


class ScoredObjective(Objective):
    """Policy gradient on the replies that have a score, by `extra["scored"]` (B,): to have none is no score of 0.

    Raises:
        ValueError: at `prepare` rows that do not say which of them have a score.
    """

    needs: tuple[type, ...] = (PolicyGradientObjective,)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        refuse_replies(self, "scored_steps")
        self.policy_over = "scored_steps"

    def select(self, batch: Batch) -> Batch:
        """Refuse rows that do not say which of them have a score; every row stays."""
        if "scored" not in batch.extra:
            raise ValueError("the batch does not say which of its rows have a score (`extra.scored`)")
        return batch

    def masks(self, batch: Batch) -> Batch:
        """`scored_steps`: the learner's in rows with a score."""
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
    """Scores by policy gradient, expected responses by imitation, critiques by predicting them, rankings by DPO.

    Each term is a mean over its own steps or pairs, so it is what it would be if the other lines were not there.
    """

    imitation_accuracy = "imitation_accuracy"  # `accuracy` is that of preferences
    measures: tuple[str, ...] = ("imitation_accuracy",)
