"""Direct preference optimisation: β times its log-ratio to the reference is the policy's own reward model."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import masked_mean, row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import Positive, Share
from lightning_nlf.objective import Evaluation, Terms
from lightning_nlf.objectives.direct_preference import DirectPreferenceObjective, reply_steps
from lightning_nlf.objectives.reference import ReferenceObjective


def dpo_loss(difference: Tensor, beta: float) -> Tensor:
    """−log σ(βh): eq. 7 of https://arxiv.org/abs/2305.18290.

    Args: difference (P,): h = log π/π_ref of the chosen minus that of the rejected.  Returns (P,).
    """
    return -F.logsigmoid(beta * difference)


def conservative_dpo_loss(difference: Tensor, beta: float, smoothing: float) -> Tensor:
    """−(1 − ε) log σ(βh) − ε log σ(−βh), for labels that are wrong with probability ε: https://ericmitchell.ai/cdpo.pdf.

    difference h (P,) → (P,)
    """
    return (1 - smoothing) * dpo_loss(difference, beta) + smoothing * dpo_loss(-difference, beta)


def robust_dpo_loss(difference: Tensor, beta: float, smoothing: float) -> Tensor:
    """(−(1 − ε) log σ(βh) + ε log σ(−βh)) / (1 − 2ε), in the mean over wrong labels the loss of the right ones.

    https://arxiv.org/abs/2403.00409.  difference h (P,) → (P,)
    """
    noisy = (1 - smoothing) * dpo_loss(difference, beta) - smoothing * dpo_loss(-difference, beta)
    return noisy / (1 - 2 * smoothing)


def hinge_loss(difference: Tensor, beta: float) -> Tensor:
    """max(0, 1 − βh): hinge-norm in https://arxiv.org/abs/2309.06657.  difference h (P,) → (P,)"""
    return (1 - beta * difference).clamp(min=0)


def ipo_loss(difference: Tensor, beta: float) -> Tensor:
    """(h − 1/(2β))²: eq. 17 of https://arxiv.org/abs/2310.12036, their τ is β.  difference h (P,) → (P,)"""
    return (difference - 1 / (2 * beta)) ** 2


class DPOObjective(ReferenceObjective, DirectPreferenceObjective):
    """DPO, `dpo_loss`; the kinds below change the loss only.

    Args:
        beta: β, how closely the policy is held to the reference.
        length_normalized: compares the mean log-ratio of a reply's tokens instead of the sum: no gain by length.
    """

    def __init__(self, beta: Positive = 0.1, length_normalized: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not beta > 0:
            raise ValueError(f"beta: got {beta}, must be above 0")
        self.beta, self.length_normalized = beta, length_normalized

    def complete(self, batch: Batch) -> Batch:
        return self.with_reference(super().complete(batch))

    def fitness(self, batch: Batch, now: Evaluation) -> Tensor:
        assert batch.ref_log_probs is not None, "prepare comes first"
        steps = reply_steps(batch)
        log_ratios = row_sums(now.log_probs - batch.ref_log_probs, steps)
        return log_ratios / steps.sum(1).clamp(min=1) if self.length_normalized else log_ratios

    def pair_losses(self, difference: Tensor) -> Tensor:
        return dpo_loss(difference, self.beta)

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        """Notes KL(reference ‖ policy) a token: right for replies that the reference wrote."""
        terms = super().terms(batch, now)
        assert batch.ref_log_probs is not None
        log_ratios = (now.log_probs - batch.ref_log_probs).detach()
        now.notes["reference_kl"] = masked_mean(-log_ratios, batch.mask, batch.totals.get("mask"))
        now.over["reference_kl"] = "mask"
        return terms


class SmoothedObjective(DPOObjective):
    """Labels may be wrong.

    Args: label_smoothing: ε, how likely one is.
    """

    def __init__(self, label_smoothing: Share = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing: got {label_smoothing}, must be in [0, .5)")
        self.label_smoothing = label_smoothing


class ConservativeDPOObjective(SmoothedObjective):
    """`conservative_dpo_loss`: stops pulling where a pair is as certain as labels are."""

    def pair_losses(self, difference: Tensor) -> Tensor:
        return conservative_dpo_loss(difference, self.beta, self.label_smoothing)


class RobustDPOObjective(SmoothedObjective):
    """`robust_dpo_loss`: unbiased under wrong labels."""

    def pair_losses(self, difference: Tensor) -> Tensor:
        return robust_dpo_loss(difference, self.beta, self.label_smoothing)


class HingeDPOObjective(DPOObjective):
    """`hinge_loss`: no gradient from pairs that are right by a margin."""

    def pair_losses(self, difference: Tensor) -> Tensor:
        return hinge_loss(difference, self.beta)


class IPOObjective(DPOObjective):
    """`ipo_loss`: towards a finite margin, so that certain labels do not drive the policy off."""

    def pair_losses(self, difference: Tensor) -> Tensor:
        return ipo_loss(difference, self.beta)


class DPOPolicy(DPOObjective, PolicyModule):
    """A policy that learned from comparisons."""


class ConservativeDPOPolicy(ConservativeDPOObjective, PolicyModule):
    """The same, with smoothed labels."""


class RobustDPOPolicy(RobustDPOObjective, PolicyModule):
    """The same, corrected for wrong labels."""


class HingeDPOPolicy(HingeDPOObjective, PolicyModule):
    """The same, by a hinge."""


class IPOPolicy(IPOObjective, PolicyModule):
    """The same, by a square."""
