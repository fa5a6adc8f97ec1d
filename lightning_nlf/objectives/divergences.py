"""Divergences between an expert's distribution and a policy's: forward and reverse KL, Jensen-Shannon."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, kl_divergence


def forward_kl(expert: Distribution, policy: Distribution) -> Tensor:
    """Forward KL(expert ‖ policy): covers all modes of the expert.  Batch shape (N,) → (N,)"""
    return kl_divergence(expert, policy)


def reverse_kl(expert: Distribution, policy: Distribution) -> Tensor:
    """Reverse KL(policy ‖ expert): stays within the support of the expert.  (N,)"""
    return kl_divergence(policy, expert)


def jensen_shannon(expert: Distribution, policy: Distribution, mix: float = 0.5) -> Tensor:
    """Jensen-Shannon divergence a·KL(T ‖ M) + (1 − a)·KL(S ‖ M), M = (1 − a)S + aT.  (N,)

    T is the expert, S the policy, and a is `mix`: eq. 1 of https://arxiv.org/abs/2306.13649. The divergence equals H(a)
    + ∫ aT log(aT/M) + (1 − a)S log((1 − a)S/M), whose integrand is zero wherever T or S is zero. Exact for
    categoricals, by quadrature for Gaussians with one action dimension.
    Raises: ValueError: Gaussians with several dimensions, which have no closed form.
    """
    log_expert, log_policy, widths = _log_densities(expert, policy)
    log_expert, log_policy = log_expert + math.log(mix), log_policy + math.log(1 - mix)
    log_mixture = torch.logaddexp(log_expert, log_policy)
    integrand = log_expert.exp() * (log_expert - log_mixture) + log_policy.exp() * (log_policy - log_mixture)
    return (widths * integrand).sum(0) - mix * math.log(mix) - (1 - mix) * math.log(1 - mix)


def _log_densities(expert: Distribution, policy: Distribution) -> tuple[Tensor, Tensor, Tensor | float]:
    """Both log-densities (K, N) at K points, and the width of each point.

    The points are all tokens, or cover ±8σ of the narrower Gaussian.
    """
    if isinstance(expert, Categorical) and isinstance(policy, Categorical):
        return expert.logits.movedim(-1, 0), policy.logits.movedim(-1, 0), 1.0
    if policy.event_shape != (1,):
        raise ValueError("divergence: jsd needs one action dimension; use forward or reverse")
    narrower = expert.variance < policy.variance  # (N, 1)
    mean = torch.where(narrower, expert.mean, policy.mean).detach()
    std = torch.where(narrower, expert.variance, policy.variance).sqrt().detach()
    z = torch.linspace(-8, 8, 161, device=mean.device)[:, None, None]  # the trapezoid rule is spectrally exact here
    points = mean + std * z
    return expert.log_prob(points), policy.log_prob(points), std[:, 0] * 0.1


DIVERGENCES: dict[str, Callable[[Distribution, Distribution], Tensor]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jsd": jensen_shannon,
}
