"""DPO and its variants: the implicit reward is β log π/π_ref of the reply."""

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
    """DPO loss −log σ(βh): eq. 7 of https://arxiv.org/abs/2305.18290.

    Args: difference (P,): h = log π/π_ref of the chosen reply minus log π/π_ref of the rejected reply.  Returns (P,).
    """
    check_shapes(1, difference=difference)
    return -F.logsigmoid(beta * difference)


def conservative_dpo_loss(difference: Tensor, beta: float, smoothing: float) -> Tensor:
    """Conservative DPO loss −(1 − ε) log σ(βh) − ε log σ(−βh), for labels that are wrong with probability ε.

    Source: https://ericmitchell.ai/cdpo.pdf.  difference h (P,) → (P,)
    """
    return (1 - smoothing) * dpo_loss(difference, beta) + smoothing * dpo_loss(-difference, beta)


def robust_dpo_loss(difference: Tensor, beta: float, smoothing: float) -> Tensor:
    """Robust DPO loss (−(1 − ε) log σ(βh) + ε log σ(−βh)) / (1 − 2ε).

    Its expectation over label noise equals the loss with correct labels: https://arxiv.org/abs/2403.00409. difference h
    (P,) → (P,)
    """
    noisy = (1 - smoothing) * dpo_loss(difference, beta) - smoothing * dpo_loss(-difference, beta)
    return noisy / (1 - 2 * smoothing)


def hinge_loss(difference: Tensor, beta: float) -> Tensor:
    """Hinge loss max(0, 1 − βh), called hinge-norm in https://arxiv.org/abs/2309.06657.  difference h (P,) → (P,)"""
    check_shapes(1, difference=difference)
    return (1 - beta * difference).clamp(min=0)


def ipo_loss(difference: Tensor, beta: float) -> Tensor:
    """IPO loss (h − 1/(2β))²: eq. 17 of https://arxiv.org/abs/2310.12036, where β is τ.  difference h (P,) → (P,)"""
    check_shapes(1, difference=difference)
    return (difference - 1 / (2 * beta)) ** 2


class DPOObjective(DirectPreferenceObjective):
    """Direct preference optimisation (`dpo_loss`). Subclasses change only the loss. Needs a `ReferenceObjective`.

    Args:
        beta: β; a larger β keeps the policy closer to the reference.
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
        """Yield KL(reference ‖ policy) per token as a figure.

        This KL is only valid for replies sampled from the reference.
        """
        yield Term("reference_kl", -log_ratios(batch, now).detach(), "mask", logged_only=True)


def log_ratios(batch: Batch, now: Evaluation) -> Tensor:
    """log π/π_ref of each step, (B, T)."""
    return now.log_probs - required(batch.ref_log_probs, "the batch has no ref_log_probs; call `prepare` first")


class SmoothedObjective(DPOObjective):
    """Base of the DPO variants for noisy labels.

    Args: label_smoothing: ε, the probability that a label is wrong.
    """

    def __init__(self, label_smoothing: Share = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing: got {label_smoothing}, must be in [0, .5)")
        self.label_smoothing = label_smoothing


class ConservativeDPOObjective(SmoothedObjective):
    """`conservative_dpo_loss`: the gradient vanishes when the policy is as certain as the labels are."""

    def pair_losses(self, difference: Tensor) -> Tensor:
        return conservative_dpo_loss(difference, self.beta, self.label_smoothing)


class RobustDPOObjective(SmoothedObjective):
    """`robust_dpo_loss`: noisy labels do not bias the loss."""

    def pair_losses(self, difference: Tensor) -> Tensor:
        return robust_dpo_loss(difference, self.beta, self.label_smoothing)


class HingeDPOObjective(DPOObjective):
    """`hinge_loss`: pairs that are ranked correctly by a margin have no gradient."""

    def pair_losses(self, difference: Tensor) -> Tensor:
        return hinge_loss(difference, self.beta)


class IPOObjective(DPOObjective):
    """`ipo_loss`: regression to a finite margin, so that labels without noise do not drive the policy to extremes."""

    def pair_losses(self, difference: Tensor) -> Tensor:
        return ipo_loss(difference, self.beta)


class DPOPolicy(DPOObjective, ReferenceObjective, PolicyModule):
    """DPO policy, trained on comparisons."""


class ConservativeDPOPolicy(ConservativeDPOObjective, ReferenceObjective, PolicyModule):
    """Conservative DPO policy, with smoothed labels."""


class RobustDPOPolicy(RobustDPOObjective, ReferenceObjective, PolicyModule):
    """Robust DPO policy, corrected for wrong labels."""


class HingeDPOPolicy(HingeDPOObjective, ReferenceObjective, PolicyModule):
    """DPO policy with a hinge loss."""


class IPOPolicy(IPOObjective, ReferenceObjective, PolicyModule):
    """IPO policy, with a squared loss."""
