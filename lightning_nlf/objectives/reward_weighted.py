"""Reward-weighted and advantage-weighted regression: imitate what was done, the more the better it went."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import last_valid
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import Positive
from lightning_nlf.objective import Objective
from lightning_nlf.objectives.actor_critic import ValueObjective
from lightning_nlf.objectives.baselines import Sum, moments, one_process
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective


def reward_weights(returns: Tensor, mask: Tensor, temperature: float, over_ranks: Sum = one_process) -> Tensor:
    """e^{r/τ}, brought to mean 1 over all ranks: Peters & Schaal 2007, "Reinforcement learning by reward-weighted
    regression".

    Args: returns, mask (B, T); temperature: τ.  Returns (B, T), 0 outside `mask`.
    Raises: ValueError: τ is so small that a weight overflows.
    """
    mean, _ = moments(returns, mask, over_ranks)
    weights = torch.where(mask, (returns - mean) / temperature, -math.inf).double().exp()  # any constant cancels
    weights = weights / (over_ranks(weights.sum()) / over_ranks(mask.sum()).clamp(min=1)).clamp(min=1e-300)
    if over_ranks((~weights.isfinite()).any().float()):
        raise ValueError(f"temperature: e^(r/{temperature}) overflows; rewards differ by too much for it")
    return weights.to(returns.dtype)


def advantage_weights(advantages: Tensor, temperature: float, clip: float = 20.0) -> Tensor:
    """min(e^{A/τ}, clip): algorithm 1 of https://arxiv.org/abs/1910.00177, their β is τ, their clip 20.  Any shape."""
    return (advantages / temperature).clamp(max=math.log(clip)).exp()


def rewarded(batch: Batch) -> Batch:
    """With `rewards`: where there are none, each row's score at its last step.

    Raises: ValueError: there are no scores either.
    """
    if batch.rewards is not None:
        return batch
    if batch.score is None:
        raise ValueError("the batch has neither `rewards` nor `score`, so nothing to weight by")
    return replace(batch, rewards=torch.where(last_valid(batch.valid), batch.score[:, None], 0.0))


def effective_share(weights: Tensor, mask: Tensor, over_ranks: Sum = one_process) -> Tensor:
    """(Σw)² / (n Σw²): the share of the steps that the weights really learn from, 1 where all are the same.  ()"""
    w = torch.where(mask, weights, 0)
    squares = over_ranks((w**2).sum()) * over_ranks(mask.sum())
    return over_ranks(w.sum()) ** 2 / torch.where(squares > 0, squares, 1)


class WeightedRegressionObjective(Objective):
    """−E[w log π(a|s)]: a policy gradient whose advantages are weights above 0, which the kinds below make of them.

    Joined with a policy gradient.

    Args:
        temperature: τ, in the unit of the rewards, or of their standard deviation with `normalize_advantages`.
    """

    needs: tuple[type, ...] = (PolicyGradientObjective,)
    learned: Callable[[Batch], Tensor]

    def __init__(self, temperature: Positive = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, must be above 0")
        self.temperature = temperature

    def weights(self, advantages: Tensor, batch: Batch) -> Tensor:
        """advantages (B, T), whitened or not → (B, T)"""
        raise NotImplementedError

    def annotate(self, batch: Batch) -> Batch:
        """Rewards, from scores where there are none."""
        return rewarded(batch)

    def reweigh(self, batch: Batch) -> Batch:
        """Weights in the place of the advantages; logs the share of steps that they learn from."""
        assert batch.advantages is not None
        weights = self.weights(batch.advantages, batch)
        self.note("effective_share", effective_share(weights, self.learned(batch), self.sum_over_ranks))
        return replace(batch, advantages=weights)


class RWRObjective(WeightedRegressionObjective):
    """`reward_weights` of the reward-to-go."""

    def weights(self, advantages: Tensor, batch: Batch) -> Tensor:
        return reward_weights(advantages, self.learned(batch), self.temperature, self.sum_over_ranks)


class AWRObjective(WeightedRegressionObjective):
    """`advantage_weights`, with a critic whose V is learned by regression on the λ-returns."""

    def weights(self, advantages: Tensor, batch: Batch) -> Tensor:
        return advantage_weights(advantages, self.temperature)


class RWRPolicy(RWRObjective, PolicyGradientObjective, PolicyModule):
    """A policy that imitates replies in proportion to e^(reward/τ)."""

    def __init__(self, normalize_advantages: bool = False, **kwargs: Any) -> None:
        super().__init__(normalize_advantages=normalize_advantages, **kwargs)


class AWRAgent(AWRObjective, ValueObjective, PolicyGradientObjective, PolicyModule):
    """A policy that imitates actions in proportion to e^(advantage/τ), and its critic."""

    def __init__(self, normalize_advantages: bool = False, **kwargs: Any) -> None:
        super().__init__(normalize_advantages=normalize_advantages, **kwargs)
