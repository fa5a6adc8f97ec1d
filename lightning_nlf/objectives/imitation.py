"""Imitation of an expert's actions or labels (behaviour cloning, DAgger), alone or joint with a policy gradient."""

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
from lightning_nlf.objective import Best, Evaluation, Objective, Term
from lightning_nlf.objectives.actor_critic import ValueObjective
from lightning_nlf.objectives.baselines import Sum, one_process
from lightning_nlf.objectives.divergences import DIVERGENCES
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective, refuse_replies


def suffix_weights(
    advantages: Tensor, mask: Tensor, temperature: float, over_ranks: Sum = one_process, clip: float = 20.0
) -> Tensor:
    """Advantage weights min(exp(z/τ), clip), scaled to mean 1: AWR, algorithm 1 of https://arxiv.org/abs/1910.00177.

    z is the advantage, normalised to mean 0 and (biased) variance 1 over the steps of `mask` on all ranks. The meaning
    of τ thus does not depend on the scale of the rewards.
    Args: advantages (B, T); mask (B, T) bool, the injected steps; temperature: τ.  Returns (B, T), 1 outside `mask`.
    """
    count = over_ranks(mask.sum()).clamp(min=1)
    centred = torch.where(mask, advantages - over_ranks(torch.where(mask, advantages, 0).sum()) / count, 0)
    z = centred * torch.rsqrt(over_ranks((centred**2).sum()) / count + 1e-8)
    weights = (z / temperature).clamp(max=math.log(clip)).exp()
    mean = over_ranks(torch.where(mask, weights, 0).sum()) / count
    return torch.where(mask, weights / mean, 1.0)


def own_returns(batch: Batch, over_ranks: Sum = one_process) -> tuple[Tensor, Tensor]:
    """Mean undiscounted return of the rows in which only the learner acted, and the number of such rows; both ().

    Raises: ValueError: the batch has no rewards.
    """
    if batch.rewards is None:
        raise ValueError("until_return: the batch has no rewards, so there is no return to compare")
    learner_rows = batch.mask.any(1) & (batch.mask == batch.valid).all(1)
    returns = torch.where(batch.mask & learner_rows[:, None], batch.rewards, 0).sum()
    count = over_ranks(learner_rows.sum())
    return over_ranks(returns) / count.clamp(min=1), count


class Perplexity(MeanMetric):
    """Perplexity: the exponential of the mean negative log-likelihood."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class ImitationObjective(Objective):
    """Imitation of the expert at every step where `expert_mask` is True, even if the learner acted at this step.

    On held-out rows with discrete actions, it also logs `accuracy` and, with `nll`, `perplexity`. `accuracy` is the
    share of steps at which the policy's most likely action is the expert's action.

    Args:
        divergence: analytic divergence between the expert's and the policy's distribution. `nll` is the negative
            log-likelihood of the expert's action, which needs only that action.
        imitation_weight: weight c of the imitation loss, or a schedule c(t) over the steps decided so far, such as
            `Linear`.
        until_return: stop imitation while the learner's own rows earn at least this return, such as the expert's
            return. The threshold is compared with a moving average, over collections, of the mean undiscounted return
            of these rows. Each row counts as an episode, so do not split episodes into rows.
        suffix_temperature: τ of `suffix_weights`, which weight each injected step by its advantage. A lower τ gives
            good steps more weight. Labels, and steps from a label buffer, have weight 1.

    Raises:
        ValueError: suffix_temperature is not above 0, or is combined with `decision: reply`.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    reports: tuple[str, ...] = ("imitation", "divergence")
    measures: tuple[str, ...] = ("accuracy", "perplexity")
    feedback: tuple[str, ...] = ("expected",)
    imitation_over = "expert_mask"  # what the term is averaged over
    imitation_accuracy = "accuracy"  # logged name of the accuracy; change it if another mixin logs `accuracy`
    memory = 0.9  # decay of the average return, per collection
    average_return: Tensor  # (); NaN before the first row in which only the learner acted

    def __init__(
        self,
        divergence: Literal["forward", "reverse", "jsd", "nll"] | None = None,
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
        self.divergence: str = divergence or ("forward" if self.policy.vocabulary is None else "nll")
        self.imitation_weight = imitation_weight
        self.until_return, self.suffix_temperature = until_return, suffix_temperature
        if until_return is not None:
            self.register_buffer("average_return", torch.tensor(math.nan))

    def select(self, batch: Batch) -> Batch:
        """Update the average return of the learner, for `until_return`. All rows are kept."""
        if self.until_return is not None:
            mean, count = own_returns(batch, self.sum_over_ranks)
            if count > 0:
                first = self.average_return.isnan()
                self.average_return.copy_(torch.where(first, mean, self.average_return.lerp(mean, 1 - self.memory)))
        return batch

    def reweigh(self, batch: Batch) -> Batch:
        """With `suffix_temperature`, compute weights of the injected steps from their advantages."""
        if self.suffix_temperature is None:
            return batch
        if batch.advantages is None:
            raise ValueError("suffix_temperature: the batch has no advantages; add a policy gradient to the class")
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
    """Imitation loss D(expert, policy), or −log π of the expert's action (`nll`); 0 without an expert.  (B, T)

    Raises: ValueError: a divergence is set, but the expert's distribution is unknown, or is over a vocabulary of a
        different size.
    """
    if batch.expert_mask is None:
        return now.log_probs * 0
    check_shapes(2, evaluated=now.where, expert_mask=batch.expert_mask)
    if divergence == "nll":
        assert batch.expert_actions is not None
        distance = -now.distribution.log_prob(batch.expert_actions[now.where])
    else:
        if batch.expert_params is None:
            raise ValueError("divergence: the expert gives actions without a distribution; use divergence: nll")
        labelled = batch.expert_mask[now.where]
        params = {name: _filled(x[now.where], labelled) for name, x in batch.expert_params.items()}
        expert = distribution_of(params)
        _refuse_other_outcomes(expert, now.distribution)
        distance = DIVERGENCES[divergence](expert, now.distribution)
    distance = now.scatter(distance)
    if "imitation_weights" not in batch.extra:
        return distance
    check_shapes(2, distance=distance, imitation_weights=batch.extra["imitation_weights"])
    return distance * batch.extra["imitation_weights"]


def _refuse_other_outcomes(expert: Distribution, policy: Distribution) -> None:
    """Refuse different vocabularies.

    Raises ValueError: both distributions are over tokens, but of different numbers.
    """
    if isinstance(expert, Categorical) and isinstance(policy, Categorical):
        expert_ids, policy_ids = expert.param_shape[-1], policy.param_shape[-1]
        if expert_ids != policy_ids:
            raise ValueError(
                f"vocabulary: the expert has {expert_ids} token ids, but the policy has {policy_ids}; give both the "
                "same vocabulary, or use divergence: nll"
            )


def _filled(x: Tensor, labelled: Tensor) -> Tensor:
    """Replace the parameters (N, …) by 1 at steps without an expert, so that padding cannot give NaN."""
    return torch.where(labelled.view(-1, *[1] * (x.ndim - 1)), x, 1.0)


class ImitationPolicy(ImitationObjective, PolicyModule):
    """Imitation policy: behaviour cloning if the expert acts, DAgger if the learner acts and the expert labels."""

    best: Best = ("imitation", "min")


class JointPolicy(ImitationObjective, PolicyGradientObjective, PolicyModule):
    """Joint policy: REINFORCE plus imitation of the expert on the learner's own states."""


class SummedJointPolicy(ImitationObjective, PolicyGradientObjective, PolicyModule):
    """Joint policy with losses summed over steps, as in TanayGahlot/LearnFromNaturalLanguageFeedback at α = ½."""

    def __init__(self, reduce: Literal["mean", "sum"] = "sum", **kwargs: Any) -> None:
        super().__init__(reduce=reduce, **kwargs)


class JointAgent(ImitationObjective, ValueObjective, PolicyGradientObjective, PolicyModule):
    """Joint policy with a critic."""
