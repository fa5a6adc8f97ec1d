"""Trajectory injection: what is learned from the steps on which the expert took over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_nlf.batch import Batch, required
from lightning_nlf.maths.means import check_shapes
from lightning_nlf.maths.schedules import Schedule, scheduled
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Positive
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.objectives.actor_critic import ValueObjective
from lightning_nlf.objectives.baselines import refuse_unscored
from lightning_nlf.objectives.imitation import ImitationObjective
from lightning_nlf.objectives.policy_gradient import (
    PolicyGradientObjective,
    importance_ratio,
    policy_gradient_loss,
    refuse_replies,
)


def weighted_injection_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """−min(ρA, clip(ρ, 0, 1+ε)A), ρ = π/b: the clipped off-policy gradient, b the expert's density.

    A ratio below 1 − ε is left alone: the expert's action starts out rare, and must be able to grow.
    Args: ratio ρ, advantages (B, T).  Returns (B, T).
    """
    check_shapes(2, ratio=ratio, advantages=advantages)
    return -torch.min(ratio * advantages, ratio.clamp(max=1 + clip) * advantages)


def shaped_injection_loss(x: Tensor, advantages: Tensor, shape: float) -> Tensor:
    """−f(x)A, f(x) = x/(x+g): LUFFY's shaping, eq. 6 of https://arxiv.org/abs/2504.14945.

    f′(x) = g/(x+g)² gives rare actions the weight that a plain ratio takes from them.
    Args: x (B, T): π/b, or π; advantages (B, T); shape: g.  Returns (B, T).
    """
    check_shapes(2, x=x, advantages=advantages)
    return -x / (x + shape) * advantages


class InjectionObjective(Objective):
    """Policy gradient on the injected steps too; how, the kinds below say.

    Args: injected_weight: weight of the term; or a schedule of it over the steps decided so far.

    Raises:
        ValueError: at `prepare` a score that is not known; where ratios need the expert's density, none.
    """

    needs: tuple[type, ...] = (PolicyGradientObjective,)
    needs_density = True  # of the expert
    injected_per: str | None = None  # what the sum is divided by, where that is another count

    def __init__(self, injected_weight: NonNegative | Schedule = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        refuse_replies(self, "an injection")
        self.injected_weight = injected_weight

    def select(self, batch: Batch) -> Batch:
        """Refuse injected steps whose score or density is not known; every row stays."""
        steps = batch.valid & ~batch.mask
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

    def masks(self, batch: Batch) -> Batch:
        """`injected`: valid steps that are not the learner's."""
        return batch.with_masks(injected=batch.valid & ~batch.mask)

    def learned(self, batch: Batch) -> Tensor:
        """(B, T) bool: all steps, while the injected ones have a weight."""
        return batch.valid if self._weight() else batch.mask

    def _weight(self) -> float:
        return scheduled(self.injected_weight, float(self.experience))

    def injected_loss(self, log_probs: Tensor, batch: Batch, advantages: Tensor) -> Tensor:
        """The unweighted loss of injected steps.  log_probs, advantages (B, T) → (B, T)"""
        raise NotImplementedError

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        advantages = required(batch.advantages, "the batch has no advantages: join a policy gradient")
        weight = self._weight()
        loss = self.injected_loss(now.log_probs, batch, advantages)
        yield Term("injected_weight", now.log_probs.new_tensor(weight), None, logged_only=True)
        yield Term("injected", loss, "injected", self.injected_per, weight)


class UnweightedInjectionObjective(InjectionObjective):
    """−log π(a_E) A: the expert's actions taken for the learner's own. Biased, and needs no density.

    With rewards ≥ 0 and no baseline it is imitation, weighted by the return.
    """

    needs_density = False

    def injected_loss(self, log_probs: Tensor, batch: Batch, advantages: Tensor) -> Tensor:
        return policy_gradient_loss(log_probs, advantages)


class WeightedInjectionObjective(InjectionObjective):
    """Importance-weighted. Needs a stochastic expert.

    Args: injected_clip: ε, a ratio counts up to 1 + ε.
    """

    def __init__(self, injected_clip: Positive = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.injected_clip = injected_clip

    def injected_loss(self, log_probs: Tensor, batch: Batch, advantages: Tensor) -> Tensor:
        behaviour = required(batch.log_probs, "the batch has no log_probs of the expert that acted")
        ratio = importance_ratio(log_probs, behaviour, batch.masks["injected"])
        return weighted_injection_loss(ratio, advantages, self.injected_clip)


class ShapedInjectionObjective(InjectionObjective):
    """LUFFY-shaped.

    Args:
        shape: g.
        relative: x = π/b (densities, which may exceed 1) rather than x = π (probabilities of tokens).
    """

    def __init__(self, shape: Positive = 0.1, relative: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape, self.relative, self.needs_density = shape, relative, relative

    def injected_loss(self, log_probs: Tensor, batch: Batch, advantages: Tensor) -> Tensor:
        behaviour = torch.zeros_like(log_probs)
        if self.relative:
            behaviour = required(batch.log_probs, "the batch has no log_probs of the expert that acted")
        x = importance_ratio(log_probs, behaviour, batch.masks["injected"])
        return shaped_injection_loss(x, advantages, self.shape)


class InjectionPolicy(ImitationObjective, PolicyGradientObjective, PolicyModule):
    """REINFORCE on the learner's steps, imitation on the injected ones."""


class InjectionAgent(ImitationObjective, ValueObjective, PolicyGradientObjective, PolicyModule):
    """The same with a critic, so that a return cut at the take-over ends in V."""


class UnweightedInjectionPolicy(UnweightedInjectionObjective, PolicyGradientObjective, PolicyModule):
    """Injected steps learned by policy gradient, as if they were the learner's own."""


class SummedInjectionPolicy(UnweightedInjectionObjective, PolicyGradientObjective, PolicyModule):
    """The same, summed over steps: trajectory injection as in TanayGahlot/LearnFromNaturalLanguageFeedback."""

    def __init__(self, reduce: Literal["mean", "sum"] = "sum", **kwargs: Any) -> None:
        super().__init__(reduce=reduce, **kwargs)


class WeightedInjectionPolicy(WeightedInjectionObjective, PolicyGradientObjective, PolicyModule):
    """Injected steps learned by importance-weighted policy gradient."""


class ShapedInjectionPolicy(ShapedInjectionObjective, PolicyGradientObjective, PolicyModule):
    """Injected steps learned by LUFFY-shaped policy gradient."""
