"""Reward-weighted (RWR) and advantage-weighted (AWR) regression: imitate the actions taken, weighted by outcome."""

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
    """RWR weights exp(r/τ), scaled to mean 1 over all ranks.

    Source: Peters & Schaal 2007, "Reinforcement learning by reward-weighted regression".

    Args: returns, mask (B, T); temperature: τ.  Returns (B, T), 0 outside `mask`.
    Raises: ValueError: a weight overflows, because τ is too small.
    """
    mean, _ = moments(returns, mask, over_ranks)
    weights = torch.where(mask, (returns - mean) / temperature, -math.inf).double().exp()  # the mean cancels
    weights = weights / (over_ranks(weights.sum()) / over_ranks(mask.sum()).clamp(min=1)).clamp(min=1e-300)
    if over_ranks((~weights.isfinite()).any().float()):
        raise ValueError(f"temperature: e^(r/{temperature}) overflows for rewards that differ this much; increase it")
    return weights.to(returns.dtype)


def advantage_weights(advantages: Tensor, temperature: float, clip: float = 20.0) -> Tensor:
    """AWR weights min(exp(A/τ), clip): algorithm 1 of https://arxiv.org/abs/1910.00177, where β is τ.  Any shape."""
    return (advantages / temperature).clamp(max=math.log(clip)).exp()


def rewarded(batch: Batch) -> Batch:
    """Add `rewards` if the batch has none. The reward of each row is its score, at the last step.

    Raises: ValueError: the batch has neither rewards nor scores.
    """
    if batch.rewards is not None:
        return batch
    if batch.score is None:
        raise ValueError("the batch has neither `rewards` nor `score` to compute weights from; add one")
    return replace(batch, rewards=torch.where(last_valid(batch.valid), batch.score[:, None], 0.0))


def effective_share(weights: Tensor, mask: Tensor, over_ranks: Sum = one_process) -> Tensor:
    """Effective sample size as a share, (Σw)² / (n Σw²): 1 if all weights are equal.  ()"""
    w = torch.where(mask, weights, 0)
    squares = over_ranks((w**2).sum()) * over_ranks(mask.sum())
    return over_ranks(w.sum()) ** 2 / torch.where(squares > 0, squares, 1)


class WeightedRegressionObjective(Objective):
    """Weighted regression −E[w log π(a|s)]: a policy gradient whose advantages are positive weights.

    Subclasses compute the weights from the advantages. Combine with a policy gradient.

    Args:
        temperature: τ, in units of the rewards. With `normalize_advantages`, τ is in units of the advantages' standard
            deviation.
    """

    needs: tuple[type, ...] = (PolicyGradientObjective,)
    learned_steps: Callable[[Batch], Tensor]

    def __init__(self, temperature: Positive = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, must be above 0")
        self.temperature = temperature

    def weights(self, advantages: Tensor, batch: Batch) -> Tensor:
        """Positive weights from advantages, which may be whitened.  (B, T) → (B, T)"""
        raise NotImplementedError

    def annotate(self, batch: Batch) -> Batch:
        """Add rewards from the scores if the batch has no rewards."""
        return rewarded(batch)

    def reweigh(self, batch: Batch) -> Batch:
        """Replace the advantages by weights, and log the effective sample size as a share of the steps."""
        assert batch.advantages is not None
        weights = self.weights(batch.advantages, batch)
        self.note("effective_share", effective_share(weights, self.learned_steps(batch), self.sum_over_ranks))
        return replace(batch, advantages=weights)


class RWRObjective(WeightedRegressionObjective):
    """Reward-weighted regression: `reward_weights` of the reward-to-go."""

    def weights(self, advantages: Tensor, batch: Batch) -> Tensor:
        return reward_weights(advantages, self.learned_steps(batch), self.temperature, self.sum_over_ranks)


class AWRObjective(WeightedRegressionObjective):
    """Advantage-weighted regression: `advantage_weights`, with a critic V trained on λ-returns."""

    def weights(self, advantages: Tensor, batch: Batch) -> Tensor:
        return advantage_weights(advantages, self.temperature)


class RWRPolicy(RWRObjective, PolicyGradientObjective, PolicyModule):
    """RWR policy: imitates replies in proportion to e^(reward/τ)."""

    def __init__(self, normalize_advantages: bool = False, **kwargs: Any) -> None:
        super().__init__(normalize_advantages=normalize_advantages, **kwargs)


class AWRAgent(AWRObjective, ValueObjective, PolicyGradientObjective, PolicyModule):
    """AWR agent: imitates actions in proportion to e^(advantage/τ), with a critic."""

    def __init__(self, normalize_advantages: bool = False, **kwargs: Any) -> None:
        super().__init__(normalize_advantages=normalize_advantages, **kwargs)
