"""Experts for the pendulum: linear controllers with Gaussian noise, so that importance weights exist."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.pendulum.simulator import InvertedPendulum
from lightning_nlf.numbers import NonNegative, Number, Positive

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def linearised() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A (4, 4) and B (4, 1) of s' = A s + B u around the upright pole at rest, by central differences of a real step.

    `mjd_transitionFD` cannot be used, because it does not support the model's RK4 integrator.
    """
    simulator, difference = InvertedPendulum(threads=1), 1e-5
    size = simulator.obs_dim + simulator.action_dim
    shifts = difference * np.concatenate([np.eye(size), -np.eye(size)])
    states = np.zeros((2 * size, simulator.state_dim))
    states[:, -simulator.obs_dim :] = shifts[:, : simulator.obs_dim]
    following = simulator.observe(simulator.step(states, shifts[:, simulator.obs_dim :])[0])
    simulator.close()
    jacobian = (following[:size] - following[size:]).T / (2 * difference)  # (4, 5)
    return jacobian[:, : simulator.obs_dim], jacobian[:, simulator.obs_dim :]


def lqr_gain(q: Sequence[float], r: float) -> NDArray[np.float64]:
    """K (4,) of u = K·s that minimises Σ sᵀ diag(q) s + r u² over an infinite episode.

    K = −(r + BᵀPB)⁻¹ BᵀPA with P from the discrete algebraic Riccati equation.
    """
    from scipy.linalg import solve_discrete_are

    a, b = linearised()
    cost_to_go = solve_discrete_are(a, b, np.diag(q), np.array([[r]]))
    return -np.linalg.solve(r + b.T @ cost_to_go @ b, b.T @ cost_to_go @ a)[0]


class LinearExpert:
    """Linear controller with Gaussian noise, N(clip(K·s, ±3), std), as an `Expert` for observations s = (x, θ, ẋ, θ̇).

    Args:
        gain: the gain K, as four numbers.
        std: standard deviation of an action. At 0 the action is the mean, with the log-density +inf of a point mass.
            Importance weights then do not exist, and code that needs importance weights must raise an error.

    Raises:
        ValueError: std < 0 or not finite, or gain does not have four finite entries.
    """

    def __init__(self, gain: Sequence[Number], std: NonNegative = 0.1) -> None:
        if not (math.isfinite(std) and std >= 0):
            raise ValueError(f"std: got {std}, must be finite and >= 0")
        if len(gain) != InvertedPendulum.obs_dim or not all(map(math.isfinite, gain)):
            raise ValueError(f"gain: got {tuple(gain)}, must be four finite numbers")
        self.gain = torch.tensor([float(k) for k in gain], dtype=torch.float32)[:, None]  # (4, 1)
        self.std = std
        self._std = torch.tensor([[std]], dtype=torch.float32)
        self._log_density_at_mean = -self._std.log() - _HALF_LOG_TWO_PI  # (1, 1), +inf if std is 0

    @torch.no_grad()
    def act(self, obs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """obs (N, 4) float32 → actions (N, 1), log_probs (N,) and `{"mean", "std"}`, each (N, 1).

        Random numbers come from torch's global generator. The actions are not clipped; the environment clips them.
        """
        limit = InvertedPendulum.action_limit
        mean = torch.mm(obs, self.gain).clamp_(-limit, limit)  # (N, 1)
        noise = torch.randn_like(mean)
        actions = torch.add(mean, noise, alpha=self.std)
        log_probs = torch.addcmul(self._log_density_at_mean, noise, noise, value=-0.5)  # (N, 1)
        return actions, log_probs.squeeze(1), {"mean": mean, "std": self._std.expand_as(mean)}


class LQRExpert(LinearExpert):
    """Optimal linear controller (LQR) of the linearised model; it balances the pole for all 1000 steps.

    Args:
        std: standard deviation of an action, 0 = deterministic (see `LinearExpert`).
        q: weights of the squared x, θ, ẋ and θ̇ in the cost.
        r: weight of the squared action in the cost.

    Raises:
        ValueError: std or an entry of q is negative, r ≤ 0, or q does not have four entries.
    """

    def __init__(
        self,
        std: NonNegative = 0.1,
        q: tuple[NonNegative, NonNegative, NonNegative, NonNegative] = (1.0, 10.0, 0.1, 0.1),
        r: Positive = 0.1,
    ) -> None:
        if len(q) != InvertedPendulum.obs_dim or not all(math.isfinite(weight) and weight >= 0 for weight in q):
            raise ValueError(f"q: got {tuple(q)}, must be four numbers >= 0")
        if not (math.isfinite(r) and r > 0):
            raise ValueError(f"r: got {r}, must be > 0")
        super().__init__(lqr_gain(q, r).tolist(), std)


class WeakExpert(LinearExpert):
    """Weak controller that holds the pole up but lets the cart drift, so the pole falls after about 195 of 1000 steps.

    Clones of this expert fail in the same way. A noisy LQR would not be a weak expert for imitation, because its mean
    is optimal, so a clone would be better than the expert.
    """

    def __init__(
        self, std: NonNegative = 0.1, gain: tuple[Number, Number, Number, Number] = (-0.1, 12.145, -0.1, 1.902)
    ) -> None:
        super().__init__(gain, std)
