"""Experts of the pendulum: gains, returns, and log-densities of their actions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data_modules.pendulum.experts import LinearExpert, LQRExpert, WeakExpert, linearised, lqr_gain
from data_modules.pendulum.simulator import InvertedPendulum
from lightning_nlf.batch import Expert

LOG_DENSITY_AT_MEAN = 1.3836466  # of N(μ, 0.1) at μ: −ln 0.1 − ½ ln 2π = 2.3025851 − 0.9189385


@pytest.fixture(scope="module")
def lqr() -> LQRExpert:
    return LQRExpert()


def episode_returns(expert: Expert, episodes: int) -> np.ndarray:
    simulator = InvertedPendulum()
    states = simulator.reset(episodes, np.random.default_rng(0))
    returns, running = np.zeros(episodes), np.arange(episodes)
    torch.manual_seed(0)
    for _ in range(simulator.time_limit):
        actions, _, _ = expert.act(torch.from_numpy(simulator.observe(states)).float())
        states, rewards, terminated = simulator.step(states, actions.numpy())
        returns[running] += rewards
        states, running = states[~terminated], running[~terminated]
    simulator.close()
    return returns


def test_lqr_holds_the_pole_for_the_whole_episode_from_twenty_starts(lqr):
    assert episode_returns(lqr, 20).tolist() == [1000] * 20


def test_weak_expert_falls_where_the_study_says():
    """The study had 193–198 ± 20 per episode: the mean of 64 has a standard error below 6; the test allows a few."""
    assert 150 < episode_returns(WeakExpert(), 64).mean() < 260


def test_gain_is_the_studys(lqr):
    torch.testing.assert_close(lqr.gain[:, 0], torch.tensor([1.719, 12.145, 2.015, 1.902]), rtol=0, atol=1e-3)


def test_gain_is_a_fixed_point_of_the_riccati_recursion():
    """Independent of the solver: 2,000 steps of value iteration from P = Q give the same gain."""
    a, b = linearised()
    cost, weight = np.diag([1, 10, 0.1, 0.1]), 0.1
    to_go = cost
    for _ in range(2000):
        gain = -np.linalg.solve(weight + b.T @ to_go @ b, b.T @ to_go @ a)
        to_go = cost + a.T @ to_go @ (a + b @ gain)
    np.testing.assert_allclose(lqr_gain((1, 10, 0.1, 0.1), 0.1), gain[0], atol=1e-6)


def test_costs_change_the_gain(lqr):
    """If force costs more, the controller is gentler; if the cart's position costs more, it returns faster."""
    assert LQRExpert(r=10.0).gain.abs().max() < lqr.gain.abs().max()
    assert LQRExpert(q=(9.0, 10.0, 0.1, 0.1)).gain[0] > lqr.gain[0]


def test_mean_is_the_clipped_product():
    """x = 1, θ = .1, ẋ = 2, θ̇ = −1 with K = (.5, 10, .25, 1): .5 + 1 + .5 − 1 = 1; ten times that is clipped to 3."""
    expert = LinearExpert((0.5, 10.0, 0.25, 1.0), std=0.1)
    obs = torch.tensor([[1.0, 0.1, 2.0, -1.0]])
    _, _, params = expert.act(torch.cat([obs, 10 * obs, -10 * obs]))
    torch.testing.assert_close(params["mean"], torch.tensor([[1.0], [3.0], [-3.0]]))
    assert params["std"].shape == (3, 1) and (params["std"] == 0.1).all()


@pytest.mark.parametrize("rows", [0, 1, 2, 64])
def test_shapes_and_types(lqr, rows):
    obs = 0.1 * torch.randn(rows, 4)
    actions, log_probs, params = lqr.act(obs)
    assert actions.shape == params["mean"].shape == params["std"].shape == (rows, 1)
    assert log_probs.shape == (rows,)
    assert actions.dtype == log_probs.dtype == torch.float32
    assert not actions.requires_grad


def test_log_probs_are_the_density_of_the_actions(lqr):
    """Gaussian: log-density at the mean minus half the squared distance in standard deviations."""
    actions, log_probs, params = lqr.act(0.05 * torch.randn(500, 4))
    distance = ((actions - params["mean"]) / 0.1)[:, 0]
    torch.testing.assert_close(log_probs, LOG_DENSITY_AT_MEAN - 0.5 * distance**2, rtol=0, atol=1e-4)


def test_actions_spread_by_std():
    """10,000 draws: the sample std of N(0, .1) has standard error .1/√20000 = 7e-4, the mean .1/100 = 1e-3."""
    torch.manual_seed(0)
    actions, _, _ = WeakExpert(std=0.1).act(torch.zeros(10_000, 4))
    assert actions.std().item() == pytest.approx(0.1, abs=4 * 7e-4)
    assert actions.mean().item() == pytest.approx(0, abs=4 * 1e-3)


def test_drawn_from_torchs_global_generator(lqr):
    obs = torch.zeros(8, 4)
    torch.manual_seed(3)
    first = lqr.act(obs)[0]
    second = lqr.act(obs)[0]
    torch.manual_seed(3)
    assert torch.equal(lqr.act(obs)[0], first)
    assert not torch.equal(first, second)


def test_without_spread_the_action_is_the_mean_and_the_density_that_of_a_point_mass():
    actions, log_probs, params = WeakExpert(std=0).act(0.1 * torch.randn(50, 4))
    assert torch.equal(actions, params["mean"])
    assert (params["std"] == 0).all()
    assert (log_probs == math.inf).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeakExpert(std=-0.1), "std: got -0.1"),
        (lambda: WeakExpert(std=math.nan), "std: got nan"),
        (lambda: LinearExpert((1.0, 2.0, 3.0)), "gain: got"),
        (lambda: LQRExpert(r=0), "r: got 0"),
        (lambda: LQRExpert(q=(1, -1, 1, 1)), "q: got"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
