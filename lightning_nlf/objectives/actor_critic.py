"""Actor-critic objectives: advantages from V by GAE, or a policy gradient weighted by Q."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch, required
from lightning_nlf.maths.means import check_shapes
from lightning_nlf.maths.parts import untrimmed
from lightning_nlf.maths.returns import episode_gae
from lightning_nlf.maths.steps import followed, with_final_obs
from lightning_nlf.modules import PolicyModule
from lightning_nlf.networks import Policy, QValue, Value
from lightning_nlf.numbers import Discount, NonNegative, Positive
from lightning_nlf.objective import Evaluation, Objective, Term, scattered
from lightning_nlf.objectives.baselines import Sum, moments, one_process
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective


def value_loss(values: Tensor, returns: Tensor, old_values: Tensor | None = None, clip: float | None = None) -> Tensor:
    """Value loss ½(V − G)².

    With `clip`, the larger of this loss and the loss of V clipped to the old value ± clip (PPO).

    The clipped form follows PPO's reference code.

    Args: values, returns, old_values (B, T).  Returns (B, T).
    """
    check_shapes(2, values=values, returns=returns)
    error = (values - returns) ** 2
    if clip is not None:
        assert old_values is not None, "a clipped value loss needs the old values"
        check_shapes(2, values=values, old_values=old_values)
        error = torch.max(error, (old_values + (values - old_values).clamp(-clip, clip) - returns) ** 2)
    return 0.5 * error


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, over_ranks: Sum = one_process) -> Tensor:
    """Explained variance 1 − Var[G − V] / Var[G] over `mask`: 1 for a perfect critic, 0 for a constant.  ()

    Args: values, returns, mask (B, T).  The result is 0 if G does not vary.
    """
    _, of_returns = moments(returns, mask, over_ranks)
    _, left = moments(returns - values, mask, over_ranks)
    return torch.where(of_returns > 1e-8, 1 - left / of_returns.clamp(min=1e-8), 0)


class CriticObjective(Objective):
    """Base of the actor-critic objectives: a critic of states (V) or actions (Q), trained by regression on λ-returns.

    Combine with a policy gradient to its right. The advantages then come from the critic instead of the policy
    gradient's own baseline.

    Args:
        lam: λ of GAE and of the returns; 1 is Monte-Carlo, 0 is one-step.
        value_weight: weight of the critic's loss.
        value_clip: maximum change of a value from its old value, as in PPO; None: no limit.

    Raises:
        ValueError: a `baseline` or an `advantage_scale` is set.
    """

    needs: tuple[type, ...] = (PolicyGradientObjective,)
    gamma: float
    baseline: str
    advantage_scale: str
    cuts: Callable[[Batch], Tensor | None]
    decided_over: str

    def __init__(
        self, lam: Discount = 0.95, value_weight: NonNegative = 0.5, value_clip: Positive | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("baseline", self.baseline), ("advantage_scale", self.advantage_scale)):
            if value != "none":
                raise ValueError(f"{name}: got {value}, but the critic is the baseline already; remove {name}")
        self.lam, self.value_weight, self.value_clip = lam, value_weight, value_clip

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        returns = required(batch.returns, "the batch has no returns; call `prepare` first")
        assert now.values is not None
        loss = value_loss(now.values, returns, batch.values, self.value_clip)
        yield Term("value", loss, self.decided_over, weight=self.value_weight)

    def _read(self, batch: Batch, ended: Tensor) -> tuple[Tensor, Tensor]:
        """Values (B, T) at valid steps, and (B,) after the last step of rows that are not `ended`; 0 elsewhere."""
        assert batch.rewards is not None
        estimates = self.critic(batch, batch.valid)
        assert estimates is not None
        bootstrap = batch.rewards.new_zeros(len(batch))
        if not ended.all():
            bootstrap = torch.where(ended, bootstrap, self.final_values(batch).float())
        return scattered(estimates.float(), batch.valid), bootstrap

    def final_values(self, batch: Batch) -> Tensor:
        """V or Q after the last step of each row, (B,)."""
        raise NotImplementedError

    def gradient_weights(self, advantages: Tensor, values: Tensor) -> Tensor:
        """The weights that multiply ∇log π, (B, T)."""
        return advantages

    def estimate(self, batch: Batch) -> Batch:
        """Add values, λ-returns and GAE advantages."""
        assert batch.rewards is not None and batch.final_obs is not None and batch.terminated is not None
        parts, ended = self.reading_parts(batch.valid), batch.terminated | followed(batch)
        with self.acting():
            read = [self._read(untrimmed(batch, rows), ended[rows]) for rows in parts]
        order = torch.cat(parts).argsort()
        values, bootstrap = (torch.cat(x)[order] for x in zip(*read, strict=True))
        advantages = episode_gae(batch, values, bootstrap, self.gamma, self.lam, self.cuts(batch))
        self.note(
            "explained_variance", explained_variance(values, advantages + values, batch.mask, self.sum_over_ranks)
        )
        weights = self.gradient_weights(advantages, values)
        return replace(batch, values=values, returns=advantages + values, advantages=weights)


class ValueObjective(CriticObjective):
    """Advantage actor-critic: advantages by GAE from V, with V(s_T) at the end of truncated rows.

    Args: value: the network for V.
    """

    policy: Policy

    def __init__(self, value: Value, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        value.join(self.policy)
        self.value = value
        self.policy.shared |= value.on_policy

    def critic(self, batch: Batch, where: Tensor, features: Tensor | None = None) -> Tensor:
        return self._value(batch.obs, where, features)

    def final_values(self, batch: Batch) -> Tensor:
        return self._value(*with_final_obs(batch))

    def _value(self, obs: Tensor, where: Tensor, features: Tensor | None = None) -> Tensor:
        if not self.value.on_policy:
            return self.value(obs, where)
        return self.value(self.policy.features(obs, where) if features is None else features)


class QObjective(CriticObjective):
    """Q actor-critic: ∇log π(a|s) weighted by Q(s, a), which is learned by SARSA(λ).

    Args: q: the network for Q.
    """

    policy: Policy

    def __init__(self, q: QValue, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.q = q
        self.policy.shared |= q.on_policy

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


class ActorCriticAgent(ValueObjective, PolicyGradientObjective, PolicyModule):
    """REINFORCE with a value baseline (λ = 1), A2C (λ < 1) or PPO (`clip` and several passes)."""


class QActorCriticAgent(QObjective, PolicyGradientObjective, PolicyModule):
    """Policy whose gradient is weighted by a learned Q(s, a)."""
