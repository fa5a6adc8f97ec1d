"""Self-distillation policy optimisation: on its own replies the policy comes closer to itself with the feedback."""

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

RATIO_LIMIT = 2.0  # c, up to which a ratio to the policy that acted counts: of https://arxiv.org/abs/2601.20802


def coarsened(distribution: Categorical, ids: Tensor) -> Categorical:
    """Over the outcomes `ids` (N, k), and one more in which all others are thrown together.  Batch shape (N,)

    No divergence of two distributions grows by it.
    """
    kept = distribution.logits.gather(-1, ids)
    rest = torch.log(-torch.expm1(kept.logsumexp(-1, keepdim=True).clamp(max=-1e-7)))  # log(1 − Σp), never log 0
    return Categorical(logits=torch.cat([kept, rest], -1), validate_args=False)


def both_coarsened(teacher: Categorical, student: Categorical, top_k: int) -> tuple[Categorical, Categorical]:
    """Over what is likeliest to the teacher and a tail; as they are, where there is no more than that."""
    if top_k >= teacher.logits.shape[-1]:
        return teacher, student
    ids = teacher.logits.topk(top_k, -1).indices
    return coarsened(teacher, ids), coarsened(student, ids)


def distillation_loss(divergence: Tensor, ratio: Tensor) -> Tensor:
    """sg(ρ) D(π ‖ π_T), ρ = min(π/b, c) of the token that was sampled: https://arxiv.org/abs/2601.20802.

    The replies are not sampled anew for each step of the optimizer, and this is what stands for it.
    Args: divergence, ratio (B, T).  Returns (B, T).
    """
    check_shapes(2, divergence=divergence, ratio=ratio)
    return ratio.detach() * divergence


class SDPOObjective(Objective):
    """Towards the teacher's distribution, on the learner's own replies. Joined with a `TeacherObjective`.

    SDPO, https://arxiv.org/abs/2601.20802; its code takes the tokens likeliest to the student where here it is those
    likeliest to the teacher, so that what only the feedback suggests is among them.

    Args:
        divergence: KL(teacher ‖ policy), `forward`, or the other way, `reverse`; or `jsd` between them.
        top_k: tokens that are told apart, the others are one; no limit where it is as large as the vocabulary.
        distillation_weight: of the term.

    Raises:
        ValueError: `top_k` is below 1; a batch without log_probs.
    """

    needs: tuple[type, ...] = (TeacherObjective,)
    reports: tuple[str, ...] = ("distillation", "teacher_kl")
    distillation_over = "taught"  # what the loss is a mean over; it is 0 where nothing is taught
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
        """Beside the loss KL(teacher ‖ policy), over the same outcomes."""
        taught = batch.masks["taught"]
        distance, kl = self._distances(batch, now) if taught.any() else (now.log_probs * 0, now.log_probs.detach() * 0)
        if "distillation_weights" in batch.extra:
            distance = distance * batch.extra["distillation_weights"]
        loss = distillation_loss(distance, self._ratio(batch, now, taught))
        yield Term("teacher_kl", kl, "taught", logged_only=True)
        yield Term("distillation", loss, self.distillation_over, weight=self.distillation_weight)

    def _distances(self, batch: Batch, now: Evaluation) -> tuple[Tensor, Tensor]:
        """The divergence, and KL(teacher ‖ policy) without gradient, at the steps with a teacher; both (B, T)."""
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
    """A policy that learned from what was said of its replies, without any score."""

    def masks(self, batch: Batch) -> Batch:
        """Take steps without a teacher out of `mask`: no other term reads them."""
        return replace(batch, mask=batch.masks["taught"])
