"""The reward says whether a reply gets likelier, the teacher who knows the feedback by which of its tokens."""

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
    """A · ((1 − λ) + λ clip(w, 1 ± ε)), w = (P_T/P_S)^{sign A}: eq. 13–15 of https://arxiv.org/abs/2604.03128.

    What the feedback speaks for counts for more where A > 0, and what it speaks against where A < 0; no advantage
    changes its sign, as ε < 1.
    Args: all but the numbers (B, T); clip: ε; weight: λ.  Returns (B, T), A outside of `mask`.
    """
    gain = torch.where(mask, advantages.sign() * (teacher_log_probs - log_probs), 0)
    return advantages * (1 + weight * (gain.exp().clamp(1 - clip, 1 + clip) - 1))


class RLSDObjective(Objective):
    """Advantages of the learner's steps, spread by what the teacher says of each.

    Joined with a `TeacherObjective` and a policy gradient.

    P_S is the policy that acted, and P_T the teacher as it is when the replies come in: no step of the optimizer asks.

    Args:
        evidence_clip: ε, in [0, 1).
        evidence_weight: λ from 0 to 1, or a schedule of it over the steps decided so far, such as `Linear` to 0.

    Raises:
        ValueError: a clip or a weight out of its range.
    """

    needs: tuple[type, ...] = (TeacherObjective, PolicyGradientObjective)
    asked: Callable[..., Tensor]

    def __init__(
        self,
        evidence_clip: Positive = 0.2,
        evidence_weight: NonNegative | Schedule = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        refuse_replies(self, "evidence_weight")
        if not 0 <= evidence_clip < 1:
            raise ValueError(f"evidence_clip: got {evidence_clip}, must be from 0 to below 1")
        if not isinstance(evidence_weight, Schedule) and not 0 <= evidence_weight <= 1:
            raise ValueError(f"evidence_weight: got {evidence_weight}, must be from 0 to 1")
        self.evidence_clip, self.evidence_weight = evidence_clip, evidence_weight

    def reweigh(self, batch: Batch) -> Batch:
        """Spread each advantage over the steps by what the teacher says of them.

        Raises ValueError: no log_probs.
        """
        if batch.log_probs is None:
            raise ValueError("evidence_clip: the batch has no log_probs of the policy that acted to compare with")
        assert batch.advantages is not None, "a policy gradient stands to the right"
        taught = batch.masks["taught"]
        teacher = self.asked(batch, taught, lambda distribution, actions: distribution.log_prob(actions))
        weight = scheduled(self.evidence_weight, float(self.experience))
        advantages = evidence_advantages(batch.advantages, teacher, batch.log_probs, taught, self.evidence_clip, weight)
        return replace(batch, advantages=advantages)


class RLSDPolicy(RLSDObjective, TeacherObjective, PolicyGradientObjective, PolicyModule):
    """Policy gradient, by `baseline`, `advantage_scale` and `clip`, with the teacher's credit for each token.

    Args: teacher_rate: of `TeacherObjective`; as published, the policy itself.
    """

    def __init__(self, teacher_rate: Share = 1.0, **kwargs: Any) -> None:
        super().__init__(teacher_rate=teacher_rate, **kwargs)
