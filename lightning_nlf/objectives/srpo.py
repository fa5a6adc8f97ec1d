"""SRPO: policy gradient on successful replies, self-distillation (SDPO) on failed replies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Number
from lightning_nlf.objective import Objective
from lightning_nlf.objectives.baselines import Sum, one_process
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective, refuse_replies
from lightning_nlf.objectives.sdpo import SDPOObjective
from lightning_nlf.objectives.self_distillation import TeacherObjective, steps_with_view


def confidence_weights(entropy: Tensor, mask: Tensor, beta: float, over_ranks: Sum = one_process) -> Tensor:
    """Confidence weights exp(−βH) of the teacher's entropy, scaled to mean 1 over `mask` on all ranks.

    Source: https://arxiv.org/abs/2604.02288.  entropy, mask (B, T) → (B, T), 1 outside `mask`
    """
    weights = torch.where(mask, -beta * entropy, 0).exp()
    mean = over_ranks(torch.where(mask, weights, 0).sum()) / over_ranks(mask.sum()).clamp(min=1)
    return torch.where(mask, weights / mean, 1)


class SRPOObjective(Objective):
    """SRPO: SDPO on failed replies with a teacher, policy gradient on all other replies.

    Source: https://arxiv.org/abs/2604.02288. Both terms are averaged over all of the learner's steps, so that the
    weight of a reply does not depend on how many replies failed. The baseline of a group averages over all its replies.
    Combine with `SDPOObjective`, `TeacherObjective` and a policy gradient.

    Args:
        success: a reply is successful if its return is higher than this value.
        entropy_beta: β of `confidence_weights`, which use the teacher at the time of the collection. At 0, all weights
            are 1.

    Raises:
        ValueError: entropy_beta is negative; in `prepare`, the batch has no rewards.
    """

    needs: tuple[type, ...] = (SDPOObjective, PolicyGradientObjective)
    teacher_numbers: Callable[..., Tensor]

    def __init__(self, success: Number = 0.5, entropy_beta: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        refuse_replies(self, "success")
        if entropy_beta < 0:
            raise ValueError(f"entropy_beta: got {entropy_beta}, must not be negative")
        self.success, self.entropy_beta = success, entropy_beta
        self.distillation_over = "mask"

    def taught(self, batch: Batch) -> Tensor:
        if batch.rewards is None:
            raise ValueError("success: the batch has no rewards, so failed replies are unknown; give the data a reward")
        failed = row_sums(batch.rewards, batch.valid) <= self.success
        return steps_with_view(batch) & failed[:, None]

    def reweigh(self, batch: Batch) -> Batch:
        """Set advantages to 0 at steps with a teacher, and weight these steps by the teacher's confidence."""
        taught = batch.masks["taught"]
        assert batch.advantages is not None, "needs a policy gradient to the right"
        batch = replace(batch, advantages=torch.where(taught, 0, batch.advantages))
        if not self.entropy_beta:
            return batch
        entropy = self.teacher_numbers(batch, taught, lambda distribution, _: distribution.entropy())
        weights = confidence_weights(entropy, taught, self.entropy_beta, self.sum_over_ranks)
        return batch.with_extra(distillation_weights=weights)


class SRPOPolicy(SRPOObjective, SDPOObjective, TeacherObjective, PolicyGradientObjective, PolicyModule):
    """SRPO policy: GRPO (`baseline`, `advantage_scale`, `clip`) on successful replies, SDPO on failed ones."""
