"""Self-distillation policy optimisation (SDPO): distil the policy with feedback into itself without feedback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from lightning_nlf.batch import Batch
from lightning_nlf.maths.distributions import distribution_of, params_of
from lightning_nlf.maths.means import check_shapes
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Size
from lightning_nlf.objective import Evaluation, Objective, Term, scattered
from lightning_nlf.objectives.divergences import DIVERGENCES, forward_kl
from lightning_nlf.objectives.policy_gradient import importance_ratio
from lightning_nlf.objectives.self_distillation import TeacherObjective

RATIO_LIMIT = 2.0  # c, the limit of the ratio to the policy that acted: https://arxiv.org/abs/2601.20802


def coarsened(distribution: Categorical, ids: Tensor) -> Categorical:
    """Distribution over the outcomes `ids` (N, k), and one outcome that joins all other outcomes.  Batch shape (N,)

    Joining outcomes never increases a divergence between two distributions.
    """
    top = distribution.logits.gather(-1, ids)
    rest = torch.log(-torch.expm1(top.logsumexp(-1, keepdim=True).clamp(max=-1e-7)))  # log(1 − Σp), never log 0
    return Categorical(logits=torch.cat([top, rest], -1), validate_args=False)


def both_coarsened(teacher: Categorical, student: Categorical, top_k: int) -> tuple[Categorical, Categorical]:
    """Reduce both distributions to the teacher's `top_k` most likely outcomes and one outcome for all others.

    Both are unchanged if there are at most `top_k` outcomes.
    """
    if top_k >= teacher.logits.shape[-1]:
        return teacher, student
    ids = teacher.logits.topk(top_k, -1).indices
    return coarsened(teacher, ids), coarsened(student, ids)


def distillation_loss(divergence: Tensor, ratio: Tensor) -> Tensor:
    """SDPO loss sg(ρ) D(π ‖ π_T), where ρ = min(π/b, c) for the sampled token: https://arxiv.org/abs/2601.20802.

    ρ corrects for replies that were not sampled by the current policy.
    """
    check_shapes(2, divergence=divergence, ratio=ratio)
    return ratio.detach() * divergence


class SDPOObjective(Objective):
    """SDPO: distillation from the teacher's distribution on the learner's own replies. Needs a `TeacherObjective`.

    Source: https://arxiv.org/abs/2601.20802. The paper's code keeps the tokens that the student finds most likely. This
    class keeps the tokens that the teacher finds most likely, which include tokens that only the feedback suggests.

    Args:
        divergence: `forward` KL(teacher ‖ policy), `reverse` KL(policy ‖ teacher), or `jsd`.
        top_k: number of tokens to distinguish; all other tokens count as one. At the vocabulary size or above, there is
            no limit.
        distillation_weight: weight of the distillation loss.

    Raises:
        ValueError: `top_k` is below 1; the batch has no log_probs.
    """

    needs: tuple[type, ...] = (TeacherObjective,)
    reports: tuple[str, ...] = ("distillation", "teacher_kl")
    distillation_over = "taught"  # mask that the loss is averaged over; the loss is 0 at steps without a teacher
    teach: Callable[[Batch, Tensor], Distribution]

    def __init__(
        self,
        divergence: Literal["forward", "reverse", "jsd"] = "jsd",
        top_k: Size = 100,
        distillation_weight: NonNegative = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if top_k < 1:
            raise ValueError(f"top_k: got {top_k}, must be at least 1")
        self.divergence, self.top_k, self.distillation_weight = divergence, top_k, distillation_weight

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        """Yield the distillation loss and, as a figure, KL(teacher ‖ policy) over the same outcomes."""
        taught = batch.masks["taught"]
        distance, kl = self._distances(batch, now) if taught.any() else (now.log_probs * 0, now.log_probs.detach() * 0)
        if "distillation_weights" in batch.extra:
            distance = distance * batch.extra["distillation_weights"]
        loss = distillation_loss(distance, self._ratio(batch, now, taught))
        yield Term("teacher_kl", kl, "taught", logged_only=True)
        yield Term("distillation", loss, self.distillation_over, weight=self.distillation_weight)

    def _distances(self, batch: Batch, now: Evaluation) -> tuple[Tensor, Tensor]:
        """Divergence, and KL(teacher ‖ policy) without gradient, at the steps with a teacher; both (B, T)."""
        taught = batch.masks["taught"]
        rows = taught[now.where]
        student: Distribution = distribution_of({name: x[rows] for name, x in params_of(now.distribution).items()})
        teacher = self.teach(batch, taught)
        if isinstance(teacher, Categorical) and isinstance(student, Categorical):
            teacher, student = both_coarsened(teacher, student, self.top_k)
        distance = DIVERGENCES[self.divergence](teacher, student)
        with torch.no_grad():
            kl = forward_kl(teacher, student)
        return scattered(distance, taught), scattered(kl, taught)

    def _ratio(self, batch: Batch, now: Evaluation, taught: Tensor) -> Tensor:
        if batch.log_probs is None:
            raise ValueError("distillation: the batch has no log_probs of the policy that acted")
        return importance_ratio(now.log_probs.detach(), batch.log_probs, taught).clamp(max=RATIO_LIMIT)


class SDPOPolicy(SDPOObjective, TeacherObjective, PolicyModule):
    """SDPO policy: learns from verbal feedback on its replies, without scores."""

    def masks(self, batch: Batch) -> Batch:
        """Remove steps without a teacher from `mask`, because no other term needs them."""
        return replace(batch, mask=batch.masks["taught"])
