"""RLSD: the reward sets the sign of each reply's advantage, and the teacher distributes it over the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.schedules import Schedule, scheduled
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Positive, Share
from lightning_nlf.objective import Objective
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective, refuse_replies
from lightning_nlf.objectives.self_distillation import TeacherObjective


def evidence_advantages(
    advantages: Tensor, teacher_log_probs: Tensor, log_probs: Tensor, mask: Tensor, clip: float, weight: float
) -> Tensor:
    """Token advantages A · ((1 − λ) + λ clip(w, 1 ± ε)), w = (P_T/P_S)^{sign A}.

    Source: eq. 13–15 of https://arxiv.org/abs/2604.03128. If A > 0, tokens that the feedback makes more likely get more
    weight. If A < 0, tokens that the feedback makes less likely get more weight. The sign of an advantage never
    changes, because ε < 1.
    Args: all tensors (B, T); clip: ε; weight: λ.  Returns (B, T), equal to A outside `mask`.
    """
    gain = torch.where(mask, advantages.sign() * (teacher_log_probs - log_probs), 0)
    return advantages * (1 + weight * (gain.exp().clamp(1 - clip, 1 + clip) - 1))


class RLSDObjective(Objective):
    """RLSD: weights the learner's advantages by the teacher's log-probabilities (`evidence_advantages`).

    Combine with a `TeacherObjective` and a policy gradient. P_S is the policy that acted. P_T is the teacher at the
    time of the collection. P_T is evaluated once per collection, not in each optimizer step.

    Args:
        evidence_clip: ε, in [0, 1).
        evidence_weight: λ in [0, 1], or a schedule over the steps decided so far, such as `Linear` to 0.

    Raises:
        ValueError: a clip or weight is out of its range.
    """

    needs: tuple[type, ...] = (TeacherObjective, PolicyGradientObjective)
    teacher_numbers: Callable[..., Tensor]

    def __init__(
        self,
        evidence_clip: Positive = 0.2,
        evidence_weight: NonNegative | Schedule = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        refuse_replies(self, "evidence_weight")
        if not 0 <= evidence_clip < 1:
            raise ValueError(f"evidence_clip: got {evidence_clip}, must be at least 0 and below 1")
        if not isinstance(evidence_weight, Schedule) and not 0 <= evidence_weight <= 1:
            raise ValueError(f"evidence_weight: got {evidence_weight}, must be from 0 to 1")
        self.evidence_clip, self.evidence_weight = evidence_clip, evidence_weight

    def reweigh(self, batch: Batch) -> Batch:
        """Weight each step's advantage by the teacher's log-probability of the action.

        Raises ValueError: the batch has no log_probs.
        """
        if batch.log_probs is None:
            raise ValueError("evidence_clip: the batch has no log_probs of the policy that acted")
        assert batch.advantages is not None, "needs a policy gradient to the right"
        taught = batch.masks["taught"]
        teacher = self.teacher_numbers(batch, taught, lambda distribution, actions: distribution.log_prob(actions))
        weight = scheduled(self.evidence_weight, float(self.experience))
        advantages = evidence_advantages(batch.advantages, teacher, batch.log_probs, taught, self.evidence_clip, weight)
        return replace(batch, advantages=advantages)


class RLSDPolicy(RLSDObjective, TeacherObjective, PolicyGradientObjective, PolicyModule):
    """RLSD policy: policy gradient (`baseline`, `advantage_scale`, `clip`) with token-level credit from the teacher.

    Args: teacher_rate: see `TeacherObjective`; 1 is the published method, with the policy itself as the teacher.
    """

    def __init__(self, teacher_rate: Share = 1.0, **kwargs: Any) -> None:
        super().__init__(teacher_rate=teacher_rate, **kwargs)
