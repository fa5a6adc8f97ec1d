"""Networks over state vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from lightning_nlf.networks.base import Policy, QValue, Value
from lightning_nlf.numbers import Number, Positive, Size


class Standardised(nn.Module):
    """(x − mean) / std, by numbers that are known beforehand.

    Raises:
        ValueError: not `size` numbers each, or a std that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: list[float] | None, std: list[float] | None) -> None:
        super().__init__()
        for name, given in (("obs_mean", mean), ("obs_std", std)):
            if given is not None and len(given) != size:
                raise ValueError(f"{name}: got {len(given)} numbers, a state has {size}")
        if std is not None and not min(std) > 0:
            raise ValueError(f"obs_std: got {std}, each must be above 0")
        self.register_buffer("mean", torch.zeros(size) if mean is None else torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.ones(size) if std is None else torch.tensor(std, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def mlp(sizes: list[int], mean: list[float] | None = None, std: list[float] | None = None) -> nn.Sequential:
    """Linear layers with tanh between them, behind `Standardised` where a mean or std is given."""
    layers: list[nn.Module] = [] if mean is None and std is None else [Standardised(sizes[0], mean, std)]
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def states(obs: Tensor, where: Tensor | None, obs_dim: int) -> Tensor:
    """The states to look at: obs (B, T, obs_dim), or (N, obs_dim) of the True steps of `where`.

    Raises:
        ValueError: a state has another number of entries.
    """
    if obs.shape[-1] != obs_dim:
        raise ValueError(f"obs_dim: the network is made for {obs_dim} numbers a state, a state has {obs.shape[-1]}")
    return obs if where is None else obs[where]


class GaussianPolicy(Policy):
    """N(mean(s), std): std a parameter of its own, or an output of the network.

    Args:
        hidden: widths of the hidden layers.
        log_std: initial log standard deviation.
        min_log_std: floor below which it cannot fall.
        state_dependent_std: the network gives the log-std too; it starts near `log_std` everywhere.
        weights: path of a checkpoint whose policy this one starts from.
        obs_mean, obs_std: of each number of a state, roughly: what comes in is brought to mean 0 and std 1 by them.
    """

    def __init__(
        self,
        obs_dim: Size,
        action_dim: Size,
        hidden: list[Size] | None = None,
        log_std: Number = 0.0,
        min_log_std: Number = -3.0,
        state_dependent_std: bool = False,
        weights: str | None = None,
        obs_mean: list[Number] | None = None,
        obs_std: list[Positive] | None = None,
    ) -> None:
        super().__init__()
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.min_log_std, self.state_dependent_std = min_log_std, state_dependent_std
        outputs = 2 * action_dim if state_dependent_std else action_dim
        self.net = mlp([obs_dim, *([32, 32] if hidden is None else hidden), outputs], obs_mean, obs_std)
        self.log_std = nn.Parameter(torch.full((action_dim,), float(log_std)))
        self.load_weights(weights)

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return states(obs, where, self.obs_dim)

    def distribution(self, features: Tensor) -> Distribution:
        mean = self.net(features).float()  # a density in bf16 is off by 1 %
        log_std: Tensor = self.log_std
        if self.state_dependent_std:
            mean, offset = mean.split(self.action_dim, -1)
            log_std = log_std + offset
        log_std = log_std + (self.min_log_std - log_std).clamp(min=0).detach()  # the floor, and a way back up from it
        std = log_std.exp().expand_as(mean)
        return Independent(Normal(mean, std, validate_args=False), 1, validate_args=False)


class MLPValue(Value):
    """V(s). Args: as of `GaussianPolicy`."""

    def __init__(
        self,
        obs_dim: Size,
        hidden: list[Size] | None = None,
        weights: str | None = None,
        obs_mean: list[Number] | None = None,
        obs_std: list[Positive] | None = None,
    ) -> None:
        super().__init__()
        self.obs_dim = obs_dim
        self.net = mlp([obs_dim, *([32, 32] if hidden is None else hidden), 1], obs_mean, obs_std)
        self.load_weights(weights)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return self.net(states(obs, where, self.obs_dim)).squeeze(-1)


class MLPQValue(QValue):
    """Q(s, a) over state and action vectors, concatenated."""

    def __init__(
        self, obs_dim: Size, action_dim: Size, hidden: list[Size] | None = None, weights: str | None = None
    ) -> None:
        super().__init__()
        self.obs_dim = obs_dim
        self.net = mlp([obs_dim + action_dim, *([32, 32] if hidden is None else hidden), 1])
        self.load_weights(weights)

    def forward(self, obs: Tensor, actions: Tensor, where: Tensor | None = None) -> Tensor:
        taken = actions if where is None else actions[where]
        return self.net(torch.cat([states(obs, where, self.obs_dim), taken], -1)).squeeze(-1)
