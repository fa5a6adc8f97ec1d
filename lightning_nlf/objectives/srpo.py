"""Replies that succeeded are learned by policy gradient, those that failed from the teacher who knows the feedback."""

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
    """e^{−βH} of the teacher, brought to mean 1 over the True steps of `mask` on all ranks: what it is sure of counts.

    https://arxiv.org/abs/2604.02288.  entropy, mask (B, T) → (B, T), 1 outside of `mask`
    """
    weights = torch.where(mask, -beta * entropy, 0).exp()
    mean = over_ranks(torch.where(mask, weights, 0).sum()) / over_ranks(mask.sum()).clamp(min=1)
    return torch.where(mask, weights / mean, 1)


class SRPOObjective(Objective):
    """SDPO on the replies that failed and have a teacher, policy gradient on all the others.

    https://arxiv.org/abs/2604.02288. Both terms are means over the same steps, all of the learner's, so each reply
    counts as it would without the other kind. A group's baseline is of all of its replies. Joined with
    `SDPOObjective`, `TeacherObjective` and a policy gradient.

    Args:
        success: what a reply must earn more than, to have succeeded.
        entropy_beta: β of `confidence_weights`, by the teacher as it is when the replies come in; 0 is without.

    Raises:
        ValueError: a negative entropy_beta; at `prepare` a batch without rewards.
    """

    needs: tuple[type, ...] = (SDPOObjective, PolicyGradientObjective)
    asked: Callable[..., Tensor]

    def __init__(self, success: Number = 0.5, entropy_beta: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        refuse_replies(self, "the share that is distilled")
        if entropy_beta < 0:
            raise ValueError(f"entropy_beta: got {entropy_beta}, must not be negative")
        self.success, self.entropy_beta = success, entropy_beta
        self.distillation_over = "mask"

    def taught(self, batch: Batch) -> Tensor:
        if batch.rewards is None:
            raise ValueError(
                "success: the batch has no rewards, so nobody knows which replies failed: "
                "nobody pays, so give the data a reward"
            )
        failed = row_sums(batch.rewards, batch.valid) <= self.success
        return steps_with_view(batch) & failed[:, None]

    def reweigh(self, batch: Batch) -> Batch:
        """No advantage where the teacher teaches; weights of its steps by its confidence."""
        taught = batch.masks["taught"]
        assert batch.advantages is not None, "a policy gradient stands to the right"
        batch = replace(batch, advantages=torch.where(taught, 0, batch.advantages))
        if not self.entropy_beta:
            return batch
        entropy = self.asked(batch, taught, lambda distribution, _: distribution.entropy())
        weights = confidence_weights(entropy, taught, self.entropy_beta, self.sum_over_ranks)
        return batch.with_extra(distillation_weights=weights)


class SRPOPolicy(SRPOObjective, SDPOObjective, TeacherObjective, PolicyGradientObjective, PolicyModule):
    """GRPO on what succeeded, by `baseline`, `advantage_scale` and `clip`; SDPO on what failed."""
