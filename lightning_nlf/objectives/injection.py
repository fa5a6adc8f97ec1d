"""Trajectory injection: what is learned from the steps on which the expert took over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import Schedule, masked_mean, scheduled
from lightning_nlf.numbers import NonNegative, Positive
from lightning_nlf.objective import Evaluation, Objective, Terms
from lightning_nlf.objectives.actor_critic import ActorCriticAgent
from lightning_nlf.objectives.imitation import JointAgent, JointPolicy
from lightning_nlf.objectives.policy_gradient import (
    ReinforcePolicy,
    SummedObjective,
    importance_ratio,
    policy_gradient_loss,
    refuse_unscored,
)


def weighted_injection_loss(
    log_probs: Tensor, behaviour: Tensor, advantages: Tensor, mask: Tensor, clip: float, total: Tensor | None = None
) -> Tensor:
    """−E_b[min(ρA, clip(ρ, 0, 1+ε)A)], ρ = π/b: the clipped off-policy gradient, b the expert's density.

    A ratio below 1 − ε is left alone: the expert's action starts out rare, and must be able to grow.
    Args: log_probs, behaviour, advantages, mask (B, T).  Returns ().
    """
    ratio = importance_ratio(log_probs, behaviour, mask)
    return -masked_mean(torch.min(ratio * advantages, ratio.clamp(max=1 + clip) * advantages), mask, total)


def shaped_injection_loss(
    log_probs: Tensor, behaviour: Tensor, advantages: Tensor, mask: Tensor, shape: float, total: Tensor | None = None
) -> Tensor:
    """−E_b[f(x)A], f(x) = x/(x+g): LUFFY's shaping, eq. 6 of https://arxiv.org/abs/2504.14945.

    f′(x) = g/(x+g)² gives rare actions the weight that a plain ratio takes from them.
    Args: log_probs, advantages, mask (B, T); behaviour (B, T), so that x = π/b, or 0, so that x = π; shape: g.
    """
    x = importance_ratio(log_probs, behaviour, mask)
    return -masked_mean(x / (x + shape) * advantages, mask, total)


class InjectionObjective(Objective):
    """Policy gradient on the injected steps too; how, the kinds below say.

    Args: injected_weight: weight of the term; or a schedule of it over the steps decided so far.
    """

    needs_density = True  # of the expert

    def __init__(self, injected_weight: NonNegative | Schedule = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.injected_weight = injected_weight

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        batch = super().prepare(batch)
        steps = batch.valid & ~batch.mask
        if steps.any() and (batch.expert_mask is None or (steps & ~batch.expert_mask).any()):
            raise ValueError("injected steps are not in expert_mask: the policy would not be evaluated there")
        refuse_unscored(batch, steps.any(1))
        if self.needs_density and batch.log_probs is None:
            raise ValueError("the batch has no log_probs of the expert that acted: ratios to its density need them")
        deterministic = batch.log_probs is not None and torch.isinf(batch.log_probs[steps]).any()
        if self.needs_density and self.sum_over_ranks(torch.as_tensor(float(deterministic), device=self.device)):
            raise ValueError(
                "the expert is deterministic (std = 0, or a text that it gives without `as_if`): ratios to its density "
                "need a stochastic one"
            )
        return batch

    def learned(self, batch: Batch) -> Tensor:
        return batch.valid if self._weight() else batch.mask

    def _weight(self) -> float:
        return scheduled(self.injected_weight, float(self.experience))

    def injected(self, log_probs: Tensor, batch: Batch, mask: Tensor, total: Tensor | None) -> Tensor:
        """The unweighted loss over `mask` (B, T), the injected steps.  ()"""
        raise NotImplementedError

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        mask = batch.valid & ~batch.mask
        loss = self.injected(now.log_probs, batch, mask, batch.totals.get("injected"))
        weight = self._weight()
        now.notes["injected_weight"] = now.log_probs.new_tensor(weight)
        now.over["injected"] = "injected"
        return super().terms(batch, now) | {"injected": weight * loss}


class UnweightedInjectionObjective(InjectionObjective):
    """−E[log π(a_E) A]: the expert's actions taken for the learner's own. Biased, and needs no density.

    With rewards ≥ 0 and no baseline it is imitation, weighted by the return.
    """

    needs_density = False

    def injected(self, log_probs: Tensor, batch: Batch, mask: Tensor, total: Tensor | None) -> Tensor:
        assert batch.advantages is not None
        return policy_gradient_loss(log_probs, batch.advantages, mask, total)


class WeightedInjectionObjective(InjectionObjective):
    """Importance-weighted. Needs a stochastic expert.

    Args: injected_clip: ε, a ratio counts up to 1 + ε.
    """

    def __init__(self, injected_clip: Positive = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.injected_clip = injected_clip

    def injected(self, log_probs: Tensor, batch: Batch, mask: Tensor, total: Tensor | None) -> Tensor:
        assert batch.log_probs is not None and batch.advantages is not None
        return weighted_injection_loss(log_probs, batch.log_probs, batch.advantages, mask, self.injected_clip, total)


class ShapedInjectionObjective(InjectionObjective):
    """LUFFY-shaped.

    Args:
        shape: g.
        relative: x = π/b (densities, which may exceed 1) rather than x = π (probabilities of tokens).
    """

    def __init__(self, shape: Positive = 0.1, relative: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape, self.relative, self.needs_density = shape, relative, relative

    def injected(self, log_probs: Tensor, batch: Batch, mask: Tensor, total: Tensor | None) -> Tensor:
        assert batch.advantages is not None
        behaviour = torch.zeros_like(log_probs)
        if self.relative:
            assert batch.log_probs is not None
            behaviour = batch.log_probs
        return shaped_injection_loss(log_probs, behaviour, batch.advantages, mask, self.shape, total)


class InjectionPolicy(JointPolicy):
    """REINFORCE on the learner's steps, imitation on the injected ones."""


class InjectionAgent(JointAgent):
    """The same with a critic, so that a return cut at the take-over ends in V."""


class UnweightedInjectionPolicy(UnweightedInjectionObjective, ReinforcePolicy):
    """Injected steps learned by policy gradient, as if they were the learner's own."""


class SummedInjectionPolicy(SummedObjective, UnweightedInjectionPolicy):
    """The same, summed over steps: trajectory injection as in TanayGahlot/LearnFromNaturalLanguageFeedback."""


class WeightedInjectionPolicy(WeightedInjectionObjective, ReinforcePolicy):
    """Injected steps learned by importance-weighted policy gradient."""


class WeightedInjectionAgent(WeightedInjectionObjective, ActorCriticAgent):
    """The same with a critic."""


class ShapedInjectionPolicy(ShapedInjectionObjective, ReinforcePolicy):
    """Injected steps learned by LUFFY-shaped policy gradient."""


class ShapedInjectionAgent(ShapedInjectionObjective, ActorCriticAgent):
    """The same with a critic."""
