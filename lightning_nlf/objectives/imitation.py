"""Imitation of an expert wherever it acted or said what it would have done, alone or jointly with policy gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution
from torchmetrics import MeanMetric

from lightning_nlf.batch import Batch
from lightning_nlf.maths.distributions import distribution_of
from lightning_nlf.maths.means import check_shapes, mask_named, masked_mean
from lightning_nlf.maths.schedules import Schedule, scheduled
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Number, Positive
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.objectives.actor_critic import ValueObjective
from lightning_nlf.objectives.baselines import Sum, one_process
from lightning_nlf.objectives.divergences import DIVERGENCES
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective, refuse_replies


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
    """Imitation of the expert on the states where its choice is known (`expert_mask`), also where the learner acted.

    Logs of held-out rows: where actions are discrete also `accuracy`, how often the policy's likeliest is the
    expert's, and with `nll` the `perplexity`.

    Args:
        divergence: between the distributions, analytic; or `nll` of the expert's action, when only that is known.
        imitation_weight: c, or a schedule c(t) over the steps decided so far, such as `Linear`.
        until_return: no imitation while the learner's own rows earn so much, such as what the expert earns: their
            mean return, undiscounted, in a moving average over collections. A row counts as an episode, so cut none.
        suffix_temperature: τ of `suffix_weights`: injected steps that went well count for more, the lower τ the more.
            Labels, and whatever a label buffer brings back, count 1.

    Raises:
        ValueError: suffix_temperature is not above 0, or beside `decision: reply`.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    reports: tuple[str, ...] = ("imitation", "divergence")
    measures: tuple[str, ...] = ("accuracy", "perplexity")
    imitation_over = "expert_mask"  # what the term is a mean over
    imitation_accuracy = "accuracy"  # the name under which held-out rows have it; another mixin may have a term of it
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
        if suffix_temperature is not None:
            refuse_replies(self, "suffix_temperature")
        self.divergence, self.imitation_weight = divergence, imitation_weight
        self.until_return, self.suffix_temperature = until_return, suffix_temperature
        if until_return is not None:
            self.register_buffer("average_return", torch.tensor(math.nan))

    def select(self, batch: Batch) -> Batch:
        """Follow the learner's return, for `until_return`; every row stays."""
        if self.until_return is not None:
            mean, count = own_returns(batch, self.sum_over_ranks)
            if count > 0:
                first = self.average_return.isnan()
                self.average_return.copy_(torch.where(first, mean, self.average_return.lerp(mean, 1 - self.memory)))
        return batch

    def reweigh(self, batch: Batch) -> Batch:
        """Weights of injected steps by their advantages, with `suffix_temperature`."""
        if self.suffix_temperature is None:
            return batch
        if batch.advantages is None:
            raise ValueError("suffix_temperature: there are no advantages; join the imitation with a policy gradient")
        injected = batch.valid & ~batch.mask
        weights = suffix_weights(batch.advantages, injected, self.suffix_temperature, self.sum_over_ranks)
        return batch.with_extra(imitation_weights=weights)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        weight = scheduled(self.imitation_weight, float(self.experience))
        if self.until_return is not None and bool(self.average_return >= self.until_return):
            weight = 0.0
        loss = imitation_loss(batch, now, self.divergence)
        yield Term("imitation_weight", now.log_probs.new_tensor(weight), None, logged_only=True)
        yield Term("divergence", loss.detach(), self.imitation_over, logged_only=True)
        yield Term("imitation", loss, self.imitation_over, weight=weight)

    def measure(self, stage: str, batch: Batch, now: Evaluation) -> None:
        if batch.expert_mask is None or batch.expert_actions is None or batch.expert_actions.is_floating_point():
            return
        steps = mask_named(batch, self.imitation_over)
        right = now.distribution.mode == batch.expert_actions[now.where]
        accuracy = masked_mean(now.scatter(right.float()), steps)
        self.log_mean(stage, self.imitation_accuracy, accuracy, steps.sum())
        if self.divergence == "nll":
            loss = masked_mean(imitation_loss(batch, now, "nll"), steps)
            self.log_mean(stage, "perplexity", loss, steps.sum(), Perplexity)


def imitation_loss(batch: Batch, now: Evaluation, divergence: str) -> Tensor:
    """D(expert, policy) where the expert is known, or −log π of its action (`nll`); 0 without an expert.  (B, T)

    Raises: ValueError: a divergence, and no distribution of the expert; or one over other tokens.
    """
    if batch.expert_mask is None:
        return now.log_probs * 0
    check_shapes(2, evaluated=now.where, expert_mask=batch.expert_mask)
    if divergence == "nll":
        assert batch.expert_actions is not None
        distance = -now.distribution.log_prob(batch.expert_actions[now.where])
    else:
        if batch.expert_params is None:
            raise ValueError("divergence: the expert gives no distribution, only actions: use nll")
        known = batch.expert_mask[now.where]
        params = {name: _filled(x[now.where], known) for name, x in batch.expert_params.items()}
        expert = distribution_of(params)
        _refuse_other_outcomes(expert, now.distribution)
        distance = DIVERGENCES[divergence](expert, now.distribution)
    distance = now.scatter(distance)
    if "imitation_weights" not in batch.extra:
        return distance
    check_shapes(2, distance=distance, imitation_weights=batch.extra["imitation_weights"])
    return distance * batch.extra["imitation_weights"]


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


class JointPolicy(ImitationObjective, PolicyGradientObjective, PolicyModule):
    """The joint objective: REINFORCE plus imitation of the expert on the learner's own states."""


class SummedJointPolicy(ImitationObjective, PolicyGradientObjective, PolicyModule):
    """The same, summed over steps: the joint loss of TanayGahlot/LearnFromNaturalLanguageFeedback at α = ½."""

    def __init__(self, reduce: Literal["mean", "sum"] = "sum", **kwargs: Any) -> None:
        super().__init__(reduce=reduce, **kwargs)


class JointAgent(ImitationObjective, ValueObjective, PolicyGradientObjective, PolicyModule):
    """The joint objective with a critic."""
