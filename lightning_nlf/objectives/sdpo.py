"""Self-distillation policy optimisation: on its own replies the policy comes closer to itself with the feedback."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from lightning_nlf.batch import Batch
from lightning_nlf.functional import distribution_of, masked_mean, params_of
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Positive, Share, Size
from lightning_nlf.objective import Evaluation, Terms, scattered
from lightning_nlf.objectives.imitation import DIVERGENCES, forward_kl, jensen_shannon
from lightning_nlf.objectives.policy_gradient import importance_ratio
from lightning_nlf.objectives.self_distillation import TeacherObjective


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


def distillation_loss(divergence: Tensor, ratio: Tensor, mask: Tensor, total: Tensor | None = None) -> Tensor:
    """E[sg(ρ) D(π ‖ π_T)], ρ = min(π/b, c) of the token that was sampled: https://arxiv.org/abs/2601.20802.

    The replies are not sampled anew for each step of the optimizer, and this is what stands for it.
    Args: divergence, ratio, mask (B, T).  Returns ().
    """
    return masked_mean(ratio.detach() * divergence, mask, total)


class SDPOObjective(TeacherObjective):
    """Towards the teacher's distribution, on the learner's own replies.

    SDPO, https://arxiv.org/abs/2601.20802; its code takes the tokens likeliest to the student where here it is those
    likeliest to the teacher, so that what only the feedback suggests is among them.

    Args:
        divergence: KL(teacher ‖ policy), `forward`, or the other way, `reverse`; or `jsd` between them.
        mix: a of `jsd`: the teacher's part in the mixture.
        top_k: tokens that are told apart, the others are one; no limit where it is as large as the vocabulary.
        distillation_weight: of the term.
        distillation_clip: c, up to which a ratio to the policy that acted counts; by null all count 1.

    Raises:
        ValueError: a knob out of its range.
    """

    counted = "taught"  # what the loss is a mean over, as in `Batch.totals`

    def __init__(
        self,
        divergence: Literal["forward", "reverse", "jsd"] = "jsd",
        mix: Share = 0.5,
        top_k: Size = 100,
        distillation_weight: NonNegative = 1.0,
        distillation_clip: Positive | None = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < mix < 1:
            raise ValueError(f"mix: got {mix}, must be between 0 and 1; at these ends it is `forward` and `reverse`")
        if top_k < 1:
            raise ValueError(f"top_k: got {top_k}, must be at least 1")
        if distillation_clip is not None and not distillation_clip >= 1:
            raise ValueError(f"distillation_clip: got {distillation_clip}, must be at least 1")
        self.divergence, self.mix, self.top_k = divergence, mix, top_k
        self.distillation_weight, self.distillation_clip = distillation_weight, distillation_clip

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        """Notes KL(teacher ‖ policy), over the same outcomes."""
        terms = super().terms(batch, now)
        taught = batch.extra["taught"]
        distance, kl = self._distances(batch, now) if taught.any() else (now.log_probs * 0, now.log_probs.detach() * 0)
        if "distillation_weights" in batch.extra:
            distance = distance * batch.extra["distillation_weights"]
        over = {"taught": taught, "mask": batch.mask}[self.counted]
        ratio = self._ratio(batch, now, taught)
        loss = distillation_loss(distance, ratio, over, batch.totals.get(self.counted))
        now.notes["teacher_kl"] = masked_mean(kl, taught, batch.totals.get("taught"))
        now.over |= {"distillation": self.counted, "teacher_kl": "taught"}
        return terms | {"distillation": self.distillation_weight * loss}

    def _distances(self, batch: Batch, now: Evaluation) -> tuple[Tensor, Tensor]:
        """The divergence, and KL(teacher ‖ policy) without gradient, at the steps with a teacher; both (B, T)."""
        taught = batch.extra["taught"]
        own = taught[now.where]
        student: Distribution = distribution_of({name: x[own] for name, x in params_of(now.distribution).items()})
        teacher = self.teach(batch, taught)
        if isinstance(teacher, Categorical) and isinstance(student, Categorical):
            teacher, student = both_coarsened(teacher, student, self.top_k)
        if self.divergence == "jsd":
            distance = jensen_shannon(teacher, student, self.mix)
        else:
            distance = DIVERGENCES[self.divergence](teacher, student)
        with torch.no_grad():
            kl = forward_kl(teacher, student)
        return scattered(distance, taught), scattered(kl, taught)

    def _ratio(self, batch: Batch, now: Evaluation, taught: Tensor) -> Tensor:
        if self.distillation_clip is None:
            return torch.ones_like(now.log_probs)
        if batch.log_probs is None:
            raise ValueError("distillation_clip: the batch has no log_probs of the policy that acted; null is without")
        return importance_ratio(now.log_probs.detach(), batch.log_probs, taught).clamp(max=self.distillation_clip)


class SDPOPolicy(SDPOObjective, PolicyModule):
    """A policy that learned from what was said of its replies, without any score."""

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Steps without a teacher leave `mask`, and are not evaluated: there is no other term."""
        batch = super().prepare(batch)
        return replace(batch, mask=batch.extra["taught"])
