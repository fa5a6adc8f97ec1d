"""Imitation of an expert wherever it acted or said what it would have done, alone or jointly with policy gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, kl_divergence

from lightning_nlf.batch import Batch
from lightning_nlf.functional import Schedule, distribution_of, masked_mean, scheduled
from lightning_nlf.modules import PolicyModule
from lightning_nlf.objective import Evaluation, Objective, Terms
from lightning_nlf.objectives.actor_critic import ActorCriticAgent
from lightning_nlf.objectives.policy_gradient import ReinforcePolicy


def forward_kl(expert: Distribution, policy: Distribution) -> Tensor:
    """KL(expert ‖ policy): covers all that the expert may do.  Batch shape (N,) → (N,)"""
    return kl_divergence(expert, policy)


def reverse_kl(expert: Distribution, policy: Distribution) -> Tensor:
    """KL(policy ‖ expert): stays within what the expert may do.  (N,)"""
    return kl_divergence(policy, expert)


def jensen_shannon(expert: Distribution, policy: Distribution, mix: float = 0.5) -> Tensor:
    """a·KL(T ‖ M) + (1 − a)·KL(S ‖ M), M = (1 − a)S + aT: eq. 1 of https://arxiv.org/abs/2306.13649.  (N,)

    = H(a) + ∫ aT log(aT/M) + (1 − a)S log((1 − a)S/M), whose integrand vanishes wherever one of T, S does.
    Exact for categoricals; for Gaussians by quadrature, in one action dimension.
    Args: expert T, policy S; mix: a.
    Raises: ValueError: Gaussians of several dimensions, where there is no closed form.
    """
    log_expert, log_policy, widths = _log_densities(expert, policy)
    log_expert, log_policy = log_expert + math.log(mix), log_policy + math.log(1 - mix)
    log_mixture = torch.logaddexp(log_expert, log_policy)
    integrand = log_expert.exp() * (log_expert - log_mixture) + log_policy.exp() * (log_policy - log_mixture)
    return (widths * integrand).sum(0) - mix * math.log(mix) - (1 - mix) * math.log(1 - mix)


def _log_densities(expert: Distribution, policy: Distribution) -> tuple[Tensor, Tensor, Tensor | float]:
    """Both (K, N) at K points, and the width that each stands for: all tokens, or ±8σ of the narrower Gaussian."""
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


def imitation_loss(divergence: Tensor, mask: Tensor, total: Tensor | None = None) -> Tensor:
    """E[D(expert, policy)] over the steps where the expert is known.  divergence, mask (B, T) → ()"""
    return masked_mean(divergence, mask, total)


class ImitationObjective(Objective):
    """Towards the expert, on the states where its choice is known (`expert_mask`), whoever acted there.

    Args:
        divergence: between the distributions, analytic; or `nll` of the expert's action, when only that is known.
        imitation_weight: c, or a schedule c(t) over the steps decided so far, such as `Linear`.
    """

    def __init__(
        self,
        divergence: Literal["forward", "reverse", "jsd", "nll"] = "forward",
        imitation_weight: float | Schedule = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.divergence, self.imitation_weight = divergence, imitation_weight

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        weight = scheduled(self.imitation_weight, float(self.experience))
        now.notes["imitation_weight"] = now.log_probs.new_tensor(weight)
        loss = self.imitation(batch, now)
        now.notes["divergence"] = loss.detach()
        now.over |= dict.fromkeys(("imitation", "divergence"), "expert_mask")
        return super().terms(batch, now) | {"imitation": weight * loss}

    def imitation(self, batch: Batch, now: Evaluation) -> Tensor:
        """The unweighted loss, (); 0 on a batch without an expert."""
        if batch.expert_mask is None:
            return now.log_probs.sum() * 0
        if self.divergence == "nll":
            assert batch.expert_actions is not None
            distance = -now.distribution.log_prob(batch.expert_actions[now.where])
        else:
            if batch.expert_params is None:
                raise ValueError("divergence: the expert gives no distribution, only actions: use nll")
            known = batch.expert_mask[now.where]
            params = {name: _filled(x[now.where], known) for name, x in batch.expert_params.items()}
            distance = DIVERGENCES[self.divergence](distribution_of(params), now.distribution)
        return imitation_loss(now.scatter(distance), batch.expert_mask, batch.totals.get("expert_mask"))


def _filled(x: Tensor, known: Tensor) -> Tensor:
    """Parameters (N, …) with 1 where the expert is not known, so that no step of padding can give NaN."""
    return torch.where(known.view(-1, *[1] * (x.ndim - 1)), x, 1.0)


class ImitationPolicy(ImitationObjective, PolicyModule):
    """Behaviour cloning where the expert acts, DAgger where the learner acts and the expert labels."""


class JointPolicy(ImitationObjective, ReinforcePolicy):
    """The joint objective: REINFORCE plus imitation of the expert on the learner's own states."""


class JointAgent(ImitationObjective, ActorCriticAgent):
    """The joint objective with a critic."""
