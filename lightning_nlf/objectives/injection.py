"""Trajectory injection: learn from the steps after an expert has taken over an episode."""

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
    """Clipped off-policy gradient −min(ρA, clip(ρ, 0, 1+ε)A), ρ = π/b, where b is the expert's density.

    Ratios below 1 − ε are not clipped. The expert's action is unlikely at first, and its probability must be able to
    grow.
    Args: ratio ρ, advantages (B, T).  Returns (B, T).
    """
    check_shapes(2, ratio=ratio, advantages=advantages)
    return -torch.min(ratio * advantages, ratio.clamp(max=1 + clip) * advantages)


def shaped_injection_loss(x: Tensor, advantages: Tensor, shape: float) -> Tensor:
    """LUFFY's shaped loss −f(x)A, f(x) = x/(x+g): eq. 6 of https://arxiv.org/abs/2504.14945.

    A plain ratio gives little weight to unlikely actions. f′(x) = g/(x+g)² gives more weight to them.
    Args: x (B, T): π/b, or π; advantages (B, T); shape: g.  Returns (B, T).
    """
    check_shapes(2, x=x, advantages=advantages)
    return -x / (x + shape) * advantages


class InjectionObjective(Objective):
    """Policy gradient that also covers the injected steps. Subclasses define the loss of injected steps.

    Args: injected_weight: weight of the loss of injected steps, or a schedule over the steps decided so far.

    Raises:
        ValueError: in `prepare`, an injected row has an unknown score (NaN), or the loss needs the expert's density but
            the batch lacks it.
    """

    needs: tuple[type, ...] = (PolicyGradientObjective,)
    feedback: tuple[str, ...] = ("expected",)
    needs_density = True  # whether the loss needs the density of the expert
    injected_per: str | None = None  # the count to divide by; None: the count of the term's mask

    def __init__(self, injected_weight: NonNegative | Schedule = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        refuse_replies(self, "an injection")
        self.injected_weight = injected_weight

    def select(self, batch: Batch) -> Batch:
        """Refuse injected steps without a score or density. All rows are kept."""
        steps = batch.valid & ~batch.mask
        refuse_unscored(batch, steps.any(1))
        if self.needs_density and batch.log_probs is None:
            raise ValueError("the batch has no log_probs of the expert's actions, which importance ratios need")
        deterministic = batch.log_probs is not None and torch.isinf(batch.log_probs[steps]).any()
        if self.needs_density and self.sum_over_ranks(torch.as_tensor(float(deterministic), device=self.device)):
            raise ValueError(
                "the expert is deterministic (std = 0, or a fixed text without `as_if`), but importance ratios need a "
                "stochastic expert"
            )
        return batch

    def masks(self, batch: Batch) -> Batch:
        """Add the mask `injected`: the valid steps of the expert."""
        return batch.with_masks(injected=batch.valid & ~batch.mask)

    def learned_steps(self, batch: Batch) -> Tensor:
        """(B, T) bool: all valid steps, or only the learner's steps if the weight of injected steps is 0."""
        return batch.valid if self._weight() else batch.mask

    def _weight(self) -> float:
        return scheduled(self.injected_weight, float(self.experience))

    def injected_loss(self, log_probs: Tensor, batch: Batch, advantages: Tensor) -> Tensor:
        """Unweighted loss of injected steps.  log_probs, advantages (B, T) → (B, T)"""
        raise NotImplementedError

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        advantages = required(batch.advantages, "the batch has no advantages; add a policy gradient to the class")
        weight = self._weight()
        loss = self.injected_loss(now.log_probs, batch, advantages)
        yield Term("injected_weight", now.log_probs.new_tensor(weight), None, logged_only=True)
        yield Term("injected", loss, "injected", self.injected_per, weight)


class UnweightedInjectionObjective(InjectionObjective):
    """Injection loss −log π(a_E) A, which treats the expert's actions as the learner's.

    It is biased, but needs no density.

    With rewards ≥ 0 and no baseline, this is imitation weighted by the return.
    """

    needs_density = False

    def injected_loss(self, log_probs: Tensor, batch: Batch, advantages: Tensor) -> Tensor:
        return policy_gradient_loss(log_probs, advantages)


class WeightedInjectionObjective(InjectionObjective):
    """Importance-weighted injection, clipped (`weighted_injection_loss`). Needs a stochastic expert.

    Args: injected_clip: ε; ratios are clipped at 1 + ε.
    """

    def __init__(self, injected_clip: Positive = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.injected_clip = injected_clip

    def injected_loss(self, log_probs: Tensor, batch: Batch, advantages: Tensor) -> Tensor:
        behaviour = required(batch.log_probs, "the batch has no log_probs of the expert's actions")
        ratio = importance_ratio(log_probs, behaviour, batch.masks["injected"])
        return weighted_injection_loss(ratio, advantages, self.injected_clip)


class ShapedInjectionObjective(InjectionObjective):
    """Injection with LUFFY's shaped loss (`shaped_injection_loss`).

    Args:
        shape: g of the shaped loss.
        relative: use x = π/b, for densities, which may exceed 1. Otherwise x = π, for token probabilities.
    """

    def __init__(self, shape: Positive = 0.1, relative: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape, self.relative, self.needs_density = shape, relative, relative

    def injected_loss(self, log_probs: Tensor, batch: Batch, advantages: Tensor) -> Tensor:
        behaviour = torch.zeros_like(log_probs)
        if self.relative:
            behaviour = required(batch.log_probs, "the batch has no log_probs of the expert's actions")
        x = importance_ratio(log_probs, behaviour, batch.masks["injected"])
        return shaped_injection_loss(x, advantages, self.shape)


class InjectionPolicy(ImitationObjective, PolicyGradientObjective, PolicyModule):
    """Injection policy: REINFORCE on the learner's steps, imitation on the injected steps."""


class InjectionAgent(ImitationObjective, ValueObjective, PolicyGradientObjective, PolicyModule):
    """Injection policy with a critic. A return that is cut at the take-over ends with the critic's value V."""


class UnweightedInjectionPolicy(UnweightedInjectionObjective, PolicyGradientObjective, PolicyModule):
    """Injection policy that applies the policy gradient to injected steps as if the learner had taken them."""


class SummedInjectionPolicy(UnweightedInjectionObjective, PolicyGradientObjective, PolicyModule):
    """Unweighted injection summed over steps, as in TanayGahlot/LearnFromNaturalLanguageFeedback."""

    def __init__(self, reduce: Literal["mean", "sum"] = "sum", **kwargs: Any) -> None:
        super().__init__(reduce=reduce, **kwargs)


class WeightedInjectionPolicy(WeightedInjectionObjective, PolicyGradientObjective, PolicyModule):
    """Injection policy with an importance-weighted policy gradient on injected steps."""


class ShapedInjectionPolicy(ShapedInjectionObjective, PolicyGradientObjective, PolicyModule):
    """Injection policy with a LUFFY-shaped policy gradient on injected steps."""
