"""MLP networks over state vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from lightning_nlf.networks.base import Policy, QValue, Value
from lightning_nlf.numbers import Count, Number, Positive, Size


class Standardised(nn.Module):
    """Standardise a state by a fixed mean and std: (x − mean) / std.

    Raises:
        ValueError: mean or std does not have `size` entries, or a std is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: list[float] | None, std: list[float] | None) -> None:
        super().__init__()
        for name, numbers in (("obs_mean", mean), ("obs_std", std)):
            if numbers is not None and len(numbers) != size:
                raise ValueError(f"{name}: got {len(numbers)} numbers, but a state has {size}")
        if std is not None and not min(std) > 0:
            raise ValueError(f"obs_std: got {std}, all must be above 0")
        self.register_buffer("mean", torch.zeros(size) if mean is None else torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.ones(size) if std is None else torch.tensor(std, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def mlp(sizes: list[int], mean: list[float] | None = None, std: list[float] | None = None) -> nn.Sequential:
    """Linear layers with tanh between them, after `Standardised` if a mean or std is given."""
    layers: list[nn.Module] = [] if mean is None and std is None else [Standardised(sizes[0], mean, std)]
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def states(obs: Tensor, where: Tensor | None, obs_dim: int) -> Tensor:
    """Select states: obs (B, T, obs_dim), or (N, obs_dim) at the True steps of `where`.

    Raises:
        ValueError: the states do not have the size `obs_dim`.
    """
    if obs.shape[-1] != obs_dim:
        raise ValueError(f"obs_dim: the network takes {obs_dim} numbers per state, but a state has {obs.shape[-1]}")
    return obs if where is None else obs[where]


class GaussianPolicy(Policy):
    """Gaussian policy N(mean(s), std). The std is a parameter, or an output of the network.

    Args:
        obs_dim, action_dim: sizes of a state and of an action; 0 means the size in the run's data.
        hidden: widths of the hidden layers.
        log_std: initial log standard deviation.
        min_log_std: lower limit of the log standard deviation.
        state_dependent_std: the network also outputs the log-std, which is initially near `log_std` for all states.
        weights: path of a checkpoint; this network starts from the checkpoint's policy.
        obs_mean, obs_std: approximate mean and std of each entry of a state, to standardise the inputs.
    """

    def __init__(
        self,
        obs_dim: Count = 0,
        action_dim: Count = 0,
        hidden: list[Size] | None = None,
        log_std: Number = 0.0,
        min_log_std: Number = -3.0,
        state_dependent_std: bool = False,
        weights: str | None = None,
        obs_mean: list[Number] | None = None,
        obs_std: list[Positive] | None = None,
    ) -> None:
        super().__init__()
        self.sized(obs_dim=obs_dim, action_dim=action_dim)
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.min_log_std, self.state_dependent_std = min_log_std, state_dependent_std
        outputs = 2 * action_dim if state_dependent_std else action_dim
        self.net = mlp([obs_dim, *([32, 32] if hidden is None else hidden), outputs], obs_mean, obs_std)
        self.log_std = nn.Parameter(torch.full((action_dim,), float(log_std)))
        self.load_weights(weights)

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return states(obs, where, self.obs_dim)

    def distribution(self, features: Tensor) -> Distribution:
        mean = self.net(features).float()  # in bf16, densities would have errors of 1 %
        log_std: Tensor = self.log_std
        if self.state_dependent_std:
            mean, offset = mean.split(self.action_dim, -1)
            log_std = log_std + offset
        log_std = log_std + (self.min_log_std - log_std).clamp(min=0).detach()  # detached: std can leave the limit
        std = log_std.exp().expand_as(mean)
        return Independent(Normal(mean, std, validate_args=False), 1, validate_args=False)


class MLPValue(Value):
    """MLP value network V(s). Args: see `GaussianPolicy`; a run takes those that are left out from its policy."""

    def __init__(
        self,
        obs_dim: Count = 0,
        hidden: list[Size] | None = None,
        weights: str | None = None,
        obs_mean: list[Number] | None = None,
        obs_std: list[Positive] | None = None,
    ) -> None:
        super().__init__()
        self.sized(obs_dim=obs_dim)
        self.obs_dim = obs_dim
        self.net = mlp([obs_dim, *([32, 32] if hidden is None else hidden), 1], obs_mean, obs_std)
        self.load_weights(weights)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return self.net(states(obs, where, self.obs_dim)).squeeze(-1)


class MLPQValue(QValue):
    """MLP Q network Q(s, a), for concatenated state and action vectors."""

    def __init__(
        self, obs_dim: Count = 0, action_dim: Count = 0, hidden: list[Size] | None = None, weights: str | None = None
    ) -> None:
        super().__init__()
        self.sized(obs_dim=obs_dim, action_dim=action_dim)
        self.obs_dim = obs_dim
        self.net = mlp([obs_dim + action_dim, *([32, 32] if hidden is None else hidden), 1])
        self.load_weights(weights)

    def forward(self, obs: Tensor, actions: Tensor, where: Tensor | None = None) -> Tensor:
        chosen = actions if where is None else actions[where]
        return self.net(torch.cat([states(obs, where, self.obs_dim), chosen], -1)).squeeze(-1)
