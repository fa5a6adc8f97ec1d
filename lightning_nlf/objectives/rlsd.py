"""The reward says whether a reply gets likelier, the teacher who knows the feedback by which of its tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import Schedule, scheduled
from lightning_nlf.numbers import NonNegative, Positive, Share
from lightning_nlf.objectives.policy_gradient import ReinforcePolicy
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


class RLSDObjective(TeacherObjective):
    """Advantages of the learner's steps, spread by what the teacher says of each. Stands before a policy gradient.

    P_S is the policy that acted, and P_T the teacher as it is when the replies come in: no step of the optimizer asks.

    Args:
        evidence_clip: ε, in [0, 1).
        evidence_weight: λ from 0 to 1, or a schedule of it over the steps decided so far, such as `Linear` to 0.
        teacher_rate: of `TeacherObjective`; as published, the policy itself.

    Raises:
        ValueError: a clip or a weight out of its range.
    """

    def __init__(
        self,
        evidence_clip: Positive = 0.2,
        evidence_weight: NonNegative | Schedule = 1.0,
        teacher_rate: Share = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher_rate=teacher_rate, **kwargs)
        if not 0 <= evidence_clip < 1:
            raise ValueError(f"evidence_clip: got {evidence_clip}, must be from 0 to below 1")
        if not isinstance(evidence_weight, Schedule) and not 0 <= evidence_weight <= 1:
            raise ValueError(f"evidence_weight: got {evidence_weight}, must be from 0 to 1")
        self.evidence_clip, self.evidence_weight = evidence_clip, evidence_weight

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Raises ValueError: no log_probs."""
        batch = super().prepare(batch)
        if batch.log_probs is None:
            raise ValueError("evidence_clip: the batch has no log_probs of the policy that acted to compare with")
        assert batch.advantages is not None, "a policy gradient comes behind"
        taught = batch.extra["taught"]
        said = self.asked(batch, taught, lambda teacher, actions: teacher.log_prob(actions))
        weight = scheduled(self.evidence_weight, float(self.experience))
        advantages = evidence_advantages(batch.advantages, said, batch.log_probs, taught, self.evidence_clip, weight)
        return replace(batch, advantages=advantages)


class RLSDPolicy(RLSDObjective, ReinforcePolicy):
    """Policy gradient, by `baseline`, `advantage_scale` and `clip`, with the teacher's credit for each token."""
