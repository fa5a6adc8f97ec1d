"""Imitation of an expert wherever it acted or said what it would have done, alone or jointly with policy gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, kl_divergence
from torchmetrics import MeanMetric

from lightning_nlf.batch import Batch
from lightning_nlf.functional import Schedule, distribution_of, masked_mean, scheduled
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Number, Positive
from lightning_nlf.objective import Evaluation, Objective, Terms
from lightning_nlf.objectives.actor_critic import ActorCriticAgent
from lightning_nlf.objectives.policy_gradient import ReinforcePolicy, Sum, SummedObjective, one_process


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


def suffix_weights(
    advantages: Tensor, mask: Tensor, temperature: float, over_ranks: Sum = one_process, clip: float = 20.0
) -> Tensor:
    """min(e^{z/τ}, clip), brought to mean 1: the weights of https://arxiv.org/abs/1910.00177, algorithm 1.

    z are the advantages with mean 0 and (biased) variance 1 over the steps themselves, here as in the mean over all
    ranks: τ means the same whatever the rewards are.
    Args: advantages (B, T); mask (B, T) bool, the injected steps; temperature: τ.  Returns (B, T), 1 outside `mask`.
    """
    count = over_ranks(mask.sum()).clamp(min=1)
    centred = torch.where(mask, advantages - over_ranks(torch.where(mask, advantages, 0).sum()) / count, 0)
    z = centred * torch.rsqrt(over_ranks((centred**2).sum()) / count + 1e-8)
    weights = (z / temperature).clamp(max=math.log(clip)).exp()
    mean = over_ranks(torch.where(mask, weights, 0).sum()) / count
    return torch.where(mask, weights / mean, 1.0)


def own_returns(batch: Batch, over_ranks: Sum = one_process) -> tuple[Tensor, Tensor]:
    """Mean undiscounted return of the rows in which only the learner acted, and how many those are; both ().

    Raises: ValueError: no rewards.
    """
    if batch.rewards is None:
        raise ValueError("until_return: the batch has no rewards, so there is no return to compare")
    own = batch.mask.any(1) & (batch.mask == batch.valid).all(1)
    returns = torch.where(batch.mask & own[:, None], batch.rewards, 0).sum()
    count = over_ranks(own.sum())
    return over_ranks(returns) / count.clamp(min=1), count


class Perplexity(MeanMetric):
    """e to the mean of the negative log-likelihoods that it is updated with."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class ImitationObjective(Objective):
    """Towards the expert, on the states where its choice is known (`expert_mask`), whoever acted there.

    Args:
        divergence: between the distributions, analytic; or `nll` of the expert's action, when only that is known.
        imitation_weight: c, or a schedule c(t) over the steps decided so far, such as `Linear`.
        until_return: no imitation while the learner's own rows earn so much, such as what the expert earns: their
            mean return, undiscounted, in a moving average over collections. A row counts as an episode, so cut none.
        suffix_temperature: τ of `suffix_weights`: injected steps that went well count for more, the lower τ the more.
            Labels, and whatever a label buffer brings back, count 1.

    Raises:
        ValueError: suffix_temperature is not above 0.
    """

    held_out_losses: tuple[str, ...] = ("imitation",)
    memory = 0.9  # of the average return, per collection
    average_return: Tensor  # (); NaN until a row was the learner's own

    def __init__(
        self,
        divergence: Literal["forward", "reverse", "jsd", "nll"] = "forward",
        imitation_weight: NonNegative | Schedule = 1.0,
        until_return: Number | None = None,
        suffix_temperature: Positive | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if suffix_temperature is not None and not suffix_temperature > 0:
            raise ValueError(f"suffix_temperature: got {suffix_temperature}, must be above 0")
        self.divergence, self.imitation_weight = divergence, imitation_weight
        self.until_return, self.suffix_temperature = until_return, suffix_temperature
        if until_return is not None:
            self.register_buffer("average_return", torch.tensor(math.nan))
        self.held_out = nn.ModuleDict({"imitation": MeanMetric(), "accuracy": MeanMetric(), "perplexity": Perplexity()})

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        batch = super().prepare(batch)
        if self.until_return is not None:
            mean, count = own_returns(batch, self.sum_over_ranks)
            if count > 0:
                first = self.average_return.isnan()
                self.average_return.copy_(torch.where(first, mean, self.average_return.lerp(mean, 1 - self.memory)))
        if self.suffix_temperature is None:
            return batch
        if batch.advantages is None:
            raise ValueError("suffix_temperature: there are no advantages; join the imitation with a policy gradient")
        weights = suffix_weights(
            batch.advantages, batch.valid & ~batch.mask, self.suffix_temperature, self.sum_over_ranks
        )
        return replace(batch, extra=batch.extra | {"imitation_weights": weights})

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        weight = scheduled(self.imitation_weight, float(self.experience))
        if self.until_return is not None and bool(self.average_return >= self.until_return):
            weight = 0.0
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
            expert = distribution_of(params)
            _refuse_other_outcomes(expert, now.distribution)
            distance = DIVERGENCES[self.divergence](expert, now.distribution)
        distance = now.scatter(distance)  # (B, T)
        if "imitation_weights" in batch.extra:
            distance = distance * batch.extra["imitation_weights"]
        return imitation_loss(distance, batch.expert_mask, batch.totals.get("expert_mask"))

    def held_out_metrics(self) -> tuple[str, ...]:
        return ("imitation", "accuracy", "perplexity", *super().held_out_metrics())

    def measure(self, stage: str, batch: Batch, loader: int) -> None:
        """Of held-out demonstrations, which have no rewards: `imitation`, the unweighted loss.

        Where actions are discrete also `accuracy`, how often the policy's likeliest is the expert's, and with `nll` the
        `perplexity`. All are means over the expert's steps, however they were cut into batches and ranks.
        """
        if batch.rewards is not None or batch.expert_mask is None:
            return super().measure(stage, batch, loader)
        now = self.evaluate(batch)
        said = {"imitation": self.imitation(batch, now)}
        if batch.expert_actions is not None and not batch.expert_actions.is_floating_point():
            right = now.distribution.mode == batch.expert_actions[now.where]
            said["accuracy"] = masked_mean(now.scatter(right.float()), batch.expert_mask)
            if self.divergence == "nll":
                said["perplexity"] = said["imitation"]
        for name, x in said.items():
            metric = self.held_out[name]
            assert isinstance(metric, MeanMetric)
            metric.update(x, batch.expert_mask.sum())
            self.log(f"{stage}/{name}", metric, batch_size=len(batch), add_dataloader_idx=False)


def _refuse_other_outcomes(expert: Distribution, policy: Distribution) -> None:
    """Raises ValueError: both choose among tokens, and not among as many."""
    if isinstance(expert, Categorical) and isinstance(policy, Categorical):
        theirs, own = expert.param_shape[-1], policy.param_shape[-1]
        if theirs != own:
            raise ValueError(
                f"vocabulary: the expert knows {theirs} token ids and the policy {own}: a divergence needs the same; "
                "give both the same vocabulary, or use nll"
            )


def _filled(x: Tensor, known: Tensor) -> Tensor:
    """Parameters (N, …) with 1 where the expert is not known, so that no step of padding can give NaN."""
    return torch.where(known.view(-1, *[1] * (x.ndim - 1)), x, 1.0)


class ImitationPolicy(ImitationObjective, PolicyModule):
    """Behaviour cloning where the expert acts, DAgger where the learner acts and the expert labels."""


class JointPolicy(ImitationObjective, ReinforcePolicy):
    """The joint objective: REINFORCE plus imitation of the expert on the learner's own states."""


class SummedJointPolicy(SummedObjective, JointPolicy):
    """The same, summed over steps: the joint loss of TanayGahlot/LearnFromNaturalLanguageFeedback at α = ½."""


class JointAgent(ImitationObjective, ActorCriticAgent):
    """The joint objective with a critic."""
