"""Imitation of an expert wherever it acted or said what it would have done, alone or jointly with policy gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, kl_divergence

from lightning_nlf.batch import Batch
from lightning_nlf.functional import Schedule, distribution_of, masked_mean, scheduled
from lightning_nlf.modules import Evaluation, Objective, PolicyModule, Terms
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

    Exact for categoricals; for Gaussians by quadrature, in one action dimension.
    Args: expert T, policy S; mix: a.
    Raises: ValueError: Gaussians of several dimensions, where there is no closed form.
    """
    return mix * _kl_to_mixture(expert, policy, expert, mix) + (1 - mix) * _kl_to_mixture(policy, policy, expert, mix)


def _kl_to_mixture(of: Distribution, policy: Distribution, expert: Distribution, mix: float) -> Tensor:
    """E_x~of [log of(x) − log((1 − a)S(x) + aT(x))], (N,)."""
    weights, points = _support(of)
    log_mixture = torch.logaddexp(
        policy.log_prob(points) + torch.tensor(1 - mix).log(), expert.log_prob(points) + torch.tensor(mix).log()
    )
    return (weights * (of.log_prob(points) - log_mixture)).sum(0)


def _support(of: Distribution) -> tuple[Tensor, Tensor]:
    """Weights (K, N) and points (K, N, …) whose weighted sum is the expectation under `of`."""
    if isinstance(of, Categorical):
        points = of.enumerate_support()
        return of.log_prob(points).exp(), points
    if of.event_shape != (1,):
        raise ValueError("divergence: jsd needs one action dimension; use forward or reverse")
    z = torch.linspace(-8, 8, 161, device=of.mean.device)[:, None]  # the trapezoid rule is spectrally exact here
    weights = torch.softmax(-(z**2) / 2, 0).expand(-1, len(of.mean))
    return weights, of.mean + of.variance.sqrt() * z[..., None]


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
