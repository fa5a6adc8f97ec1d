"""Direct preference optimisation: β times its log-ratio to the reference is the policy's own reward model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lightning_nlf.batch import Batch, required
from lightning_nlf.maths.means import check_shapes
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import Positive, Share
from lightning_nlf.objective import Evaluation, Term
from lightning_nlf.objectives.direct_preference import DirectPreferenceObjective, reply_steps
from lightning_nlf.objectives.reference import ReferenceObjective


def dpo_loss(difference: Tensor, beta: float) -> Tensor:
    """−log σ(βh): eq. 7 of https://arxiv.org/abs/2305.18290.

    Args: difference (P,): h = log π/π_ref of the chosen minus that of the rejected.  Returns (P,).
    """
    check_shapes(1, difference=difference)
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
    check_shapes(1, difference=difference)
    return (1 - beta * difference).clamp(min=0)


def ipo_loss(difference: Tensor, beta: float) -> Tensor:
    """(h − 1/(2β))²: eq. 17 of https://arxiv.org/abs/2310.12036, their τ is β.  difference h (P,) → (P,)"""
    check_shapes(1, difference=difference)
    return (difference - 1 / (2 * beta)) ** 2


class DPOObjective(DirectPreferenceObjective):
    """DPO, `dpo_loss`; the kinds below change the loss only. Joined with a `ReferenceObjective`.

    Args:
        beta: β, how closely the policy is held to the reference.
    """

    needs: tuple[type, ...] = (ReferenceObjective,)
    reports: tuple[str, ...] = ("reference_kl",)

    def __init__(self, beta: Positive = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not beta > 0:
            raise ValueError(f"beta: got {beta}, must be above 0")
        self.beta = beta

    def fitness(self, batch: Batch, now: Evaluation) -> Tensor:
        return row_sums(log_ratios(batch, now), reply_steps(batch))

    def pair_losses(self, difference: Tensor) -> Tensor:
        return dpo_loss(difference, self.beta)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        """Adds KL(reference ‖ policy) a token: right for replies that the reference wrote."""
        yield Term("reference_kl", -log_ratios(batch, now).detach(), "mask", logged_only=True)


def log_ratios(batch: Batch, now: Evaluation) -> Tensor:
    """log π/π_ref of each step, (B, T)."""
    return now.log_probs - required(batch.ref_log_probs, "the batch has no ref_log_probs: `prepare` comes first")


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


class DPOPolicy(DPOObjective, ReferenceObjective, PolicyModule):
    """A policy that learned from comparisons."""


class ConservativeDPOPolicy(ConservativeDPOObjective, ReferenceObjective, PolicyModule):
    """The same, with smoothed labels."""


class RobustDPOPolicy(RobustDPOObjective, ReferenceObjective, PolicyModule):
    """The same, corrected for wrong labels."""


class HingeDPOPolicy(HingeDPOObjective, ReferenceObjective, PolicyModule):
    """The same, by a hinge."""


class IPOPolicy(IPOObjective, ReferenceObjective, PolicyModule):
    """The same, by a square."""
