"""Critics: advantages from V by GAE, or the policy gradient weighted by Q."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import episode_gae, followed, masked_mean, with_final_obs
from lightning_nlf.modules import PolicyModule
from lightning_nlf.networks import Policy, QValue, Value
from lightning_nlf.numbers import Discount, NonNegative, Positive
from lightning_nlf.objective import Evaluation, Terms, scattered
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective, Sum, moments, one_process


def value_loss(
    values: Tensor,
    returns: Tensor,
    mask: Tensor,
    old_values: Tensor | None = None,
    clip: float | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """½E[(V − G)²]; with `clip` the larger of that and of V kept within ±clip of the old value (PPO's reference code).

    Args: values, returns, mask, old_values (B, T).  Returns ().
    """
    error = (values - returns) ** 2
    if clip is not None:
        assert old_values is not None, "a clipped value loss needs the old values"
        error = torch.max(error, (old_values + (values - old_values).clamp(-clip, clip) - returns) ** 2)
    return 0.5 * masked_mean(error, mask, total)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, over_ranks: Sum = one_process) -> Tensor:
    """1 − Var[G − V] / Var[G] over `mask`; 1 is a perfect critic, 0 no better than a constant.  ()

    Args: values, returns, mask (B, T).  Returns 0 where G does not vary.
    """
    _, of_returns = moments(returns, mask, over_ranks)
    _, left = moments(returns - values, mask, over_ranks)
    return torch.where(of_returns > 1e-8, 1 - left / of_returns.clamp(min=1e-8), 0)


class CriticObjective(PolicyGradientObjective):
    """Policy gradient with a critic, regressed on λ-returns; what the critic is, the two kinds below say.

    Args:
        lam: λ of GAE and of the returns; 1 is Monte-Carlo, 0 one-step.
        value_weight, value_clip: weight of the critic's loss, and how far a value may move in its favour.
    """

    def __init__(
        self, lam: Discount = 0.95, value_weight: NonNegative = 0.5, value_clip: Positive | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("baseline", self.baseline), ("advantage_scale", self.advantage_scale)):
            if value != "none":
                raise ValueError(f"{name}: {value} beside a critic, which is the baseline; leave it out")
        self.lam, self.value_weight, self.value_clip = lam, value_weight, value_clip

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        assert now.values is not None and batch.returns is not None
        loss = value_loss(
            now.values, batch.returns, batch.mask, batch.values, self.value_clip, batch.totals.get("mask")
        )
        now.over["value"] = "mask"
        return super().terms(batch, now) | {"value": self.value_weight * loss}

    def final_values(self, batch: Batch) -> Tensor:
        """V or Q of what follows each row, (B,)."""
        raise NotImplementedError

    def gradient_weights(self, advantages: Tensor, values: Tensor) -> Tensor:
        """What ∇log π is weighted with, (B, T)."""
        return advantages

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        batch = batch.to(self.device)
        assert batch.rewards is not None and batch.final_obs is not None and batch.terminated is not None
        with self.acting():
            estimates = self.critic(batch, batch.valid)
            assert estimates is not None
            known = batch.terminated | followed(batch)
            bootstrap = batch.rewards.new_zeros(len(batch))
            if not known.all():
                bootstrap = torch.where(known, bootstrap, self.final_values(batch).float())
        values = scattered(estimates.float(), batch.valid)
        advantages = episode_gae(batch, values, bootstrap, self.gamma, self.lam, self.cuts(batch))
        self.note(
            "explained_variance", explained_variance(values, advantages + values, batch.mask, self.sum_over_ranks)
        )
        weights = self.gradient_weights(advantages, values)
        return super().prepare(replace(batch, values=values, returns=advantages + values, advantages=weights))


class ValueObjective(CriticObjective):
    """Advantage actor-critic: A by GAE from V, and V(s_T) where a row was truncated."""

    policy: Policy
    value: Value

    def critic(self, batch: Batch, where: Tensor, features: Tensor | None = None) -> Tensor:
        return self._value(batch.obs, where, features)

    def final_values(self, batch: Batch) -> Tensor:
        return self._value(*with_final_obs(batch))

    def _value(self, obs: Tensor, where: Tensor, features: Tensor | None = None) -> Tensor:
        if not self.value.on_policy:
            return self.value(obs, where)
        return self.value(self.policy.features(obs, where) if features is None else features)


class QObjective(CriticObjective):
    """Q actor-critic: ∇log π(a|s) weighted by Q(s, a), Q learned by SARSA(λ)."""

    q: QValue
    policy: Policy

    def critic(self, batch: Batch, where: Tensor, features: Tensor | None = None) -> Tensor:
        return self._q(batch.obs, batch.actions, where, features)

    def final_values(self, batch: Batch) -> Tensor:
        obs, last = with_final_obs(batch)
        features = self.policy.features(obs, last)
        actions = torch.cat([batch.actions, torch.zeros_like(batch.actions[:, :1])], 1)
        actions[last] = self.policy.distribution(features).sample()
        return self._q(obs, actions, last, features)

    def _q(self, obs: Tensor, actions: Tensor, where: Tensor, features: Tensor | None = None) -> Tensor:
        if not self.q.on_policy:
            return self.q(obs, actions, where)
        return self.q(self.policy.features(obs, where) if features is None else features, actions[where])

    def gradient_weights(self, advantages: Tensor, values: Tensor) -> Tensor:
        return values


class ActorCriticAgent(ValueObjective, PolicyModule):
    """REINFORCE with a value baseline (λ = 1), A2C (λ < 1) or PPO (`clip` and several passes)."""

    def __init__(self, value: Value, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = value
        self.policy.shared |= value.on_policy


class QActorCriticAgent(QObjective, PolicyModule):
    """A policy whose gradient is weighted by a learned Q(s, a)."""

    def __init__(self, q: QValue, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.q = q
        self.policy.shared |= q.on_policy
