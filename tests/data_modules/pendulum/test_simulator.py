"""The batched simulator equals gymnasium's environment, for any rows and any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from data_modules.pendulum import simulator as simulator_module
from data_modules.pendulum.simulator import FloatArray, InvertedPendulum, has_fallen

Policy = Callable[[int, FloatArray, np.random.Generator], float]
GAIN = np.array([1.719, 12.145, 2.015, 1.902])


def random_actions(step: int, obs: FloatArray, rng: np.random.Generator) -> float:
    return rng.uniform(-4, 4)  # beyond the motor's range on both sides, to test clipping too


def noisy_linear(step: int, obs: FloatArray, rng: np.random.Generator) -> float:
    return GAIN @ obs + rng.normal(0, 0.3)


def towards_the_end_of_the_rail(step: int, obs: FloatArray, rng: np.random.Generator) -> float:
    """A balancing controller whose goal moves at 0.1 m/s past the rail's end at 1 m, where the pole falls."""
    return GAIN @ (obs - np.array([0.004 * step, 0, 0, 0]))


@pytest.fixture
def simulator() -> Iterator[InvertedPendulum]:
    simulator = InvertedPendulum(threads=2)
    yield simulator
    simulator.close()


def both_runs(simulator: InvertedPendulum, policy: Policy, seed: int, steps: int) -> tuple[list, list]:
    """(obs, reward, terminated) at every step of one episode, of gymnasium and of the simulator, with the same seed.

    Actions depend on gymnasium's observations only, so that the controller does not hide a deviation.
    """
    import gymnasium

    env = gymnasium.make("InvertedPendulum-v5").unwrapped
    rng = np.random.default_rng(seed)
    theirs = [(env.reset(seed=seed)[0].copy(), 0, False)]
    state = simulator.reset(1, np.random.default_rng(seed))
    ours = [(simulator.observe(state)[0], 0, False)]
    for step in range(steps):
        action = np.array([policy(step, theirs[-1][0], rng)])
        obs, reward, terminated, _, _ = env.step(action)
        theirs.append((obs.copy(), reward, terminated))
        state, rewards, fallen = simulator.step(state, action[None])
        ours.append((simulator.observe(state)[0], rewards[0], fallen[0]))
        if terminated:
            break
    env.close()
    return theirs, ours


@pytest.mark.parametrize("policy", [random_actions, noisy_linear])
def test_off_the_rails_ends_an_episode_is_gymnasiums_to_the_last_bit(simulator, policy):
    for seed in range(10):
        theirs, ours = both_runs(simulator, policy, seed, steps=200)
        assert max(abs(obs[0]) for obs, _, _ in theirs) < 1, "the cart was meant to stay off the ends of the rail"
        for (obs, reward, terminated), (our_obs, our_reward, our_terminated) in zip(theirs, ours, strict=True):
            np.testing.assert_array_equal(our_obs, obs)
            assert (our_reward, our_terminated) == (reward, terminated)


@pytest.mark.parametrize("seed", range(3))
def test_on_the_rails_end_an_episode_is_gymnasiums_within_1e_12(simulator, seed):
    theirs, ours = both_runs(simulator, towards_the_end_of_the_rail, seed, steps=400)
    assert max(obs[0] for obs, _, _ in theirs) > 1, "the cart was meant to hit the end of the rail"
    assert theirs[-1][2], "the pole was meant to fall"
    for (obs, reward, terminated), (our_obs, our_reward, our_terminated) in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(our_obs, obs, rtol=0, atol=1e-12)
        assert (our_reward, our_terminated) == (reward, terminated)


def test_constants_are_gymnasiums():
    import gymnasium

    env = gymnasium.make("InvertedPendulum-v5")
    assert env.observation_space.shape == (InvertedPendulum.obs_dim,)
    assert env.action_space.shape == (InvertedPendulum.action_dim,)
    assert env.action_space.high[0] == InvertedPendulum.action_limit
    assert env.spec.max_episode_steps == InvertedPendulum.time_limit
    assert env.unwrapped.frame_skip == InvertedPendulum.frame_skip
    env.close()


def test_the_number_of_rows_may_change_at_every_call_and_rows_do_not_see_each_other(simulator):
    """Rows stepped together, on the pool, alone, or in another order: always the same bits."""
    rng = np.random.default_rng(0)
    states, actions = simulator.reset(70, rng), rng.uniform(-3, 3, (70, 1))
    together, rewards, fallen = simulator.step(states, actions)
    for rows in ([3], [69, 0], list(range(0, 70, 2)), list(range(70))[::-1], list(range(17))):
        subset, some_rewards, some_fallen = simulator.step(states[rows], actions[rows])
        np.testing.assert_array_equal(subset, together[rows])
        np.testing.assert_array_equal(some_rewards, rewards[rows])
        np.testing.assert_array_equal(some_fallen, fallen[rows])


@pytest.mark.parametrize("rows", [1, 8, 16, 37, 200])
def test_threads_change_nothing(rows):
    rng = np.random.default_rng(rows)
    actions = rng.uniform(-3, 3, (5, rows, 1)).astype(np.float32)
    ends = []
    for threads in (1, 2, 3):
        simulator = InvertedPendulum(threads=threads)
        states = simulator.reset(rows, np.random.default_rng(9))
        for action in actions:
            states, _, _ = simulator.step(states, action)
        ends.append(states)
        simulator.close()
    np.testing.assert_array_equal(ends[1], ends[0])
    np.testing.assert_array_equal(ends[2], ends[0])


def test_what_was_returned_or_passed_is_never_written_again(simulator):
    states = simulator.reset(20, np.random.default_rng(0))
    before = states.copy()
    obs = simulator.observe(states)
    obs[:] = 7
    following, rewards, fallen = simulator.step(states, np.ones((20, 1)))
    copy = following.copy()
    simulator.step(following, np.full((20, 1), -2.0))
    np.testing.assert_array_equal(states, before)
    np.testing.assert_array_equal(following, copy)
    assert rewards.shape == fallen.shape == (20,)


def test_time_advances_by_two_frames_of_a_fiftieth_second(simulator):
    state, _, _ = simulator.step(simulator.reset(1, np.random.default_rng(0)), np.zeros((1, 1)))
    assert state[0, 0] == pytest.approx(0.04, abs=1e-15)


def test_no_rows(simulator):
    states = simulator.reset(0, np.random.default_rng(0))
    following, rewards, fallen = simulator.step(states, np.empty((0, 1)))
    assert simulator.observe(following).shape == (0, 4)
    assert (following.shape, rewards.shape, fallen.shape, fallen.dtype) == (states.shape, (0,), (0,), np.bool_)


def test_reset_noise_is_uniform_in_a_hundredth():
    """The extremes of 40,000 draws from U(−.01, .01) miss ±.01 by 2e-6 with probability e⁻⁴ at most, so by 1e-5
    practically never; the mean has standard error .01/√3/200 = 2.9e-5."""
    simulator = InvertedPendulum(threads=1)
    obs = simulator.observe(simulator.reset(10_000, np.random.default_rng(0)))
    simulator.close()
    assert -0.01 <= obs.min() < -0.00999 and 0.00999 < obs.max() <= 0.01
    assert abs(obs.mean()) < 4 * 2.9e-5


def test_fallen_is_a_lean_beyond_a_fifth_or_anything_not_finite():
    obs = np.zeros((7, 4))
    obs[1:, 1] = [0.2, -0.2, np.nextafter(0.2, 1), -0.3, np.nan, 0]
    obs[6, 2] = np.inf
    assert has_fallen(obs).tolist() == [False, False, False, True, True, True, True]


@pytest.mark.parametrize("action", [np.nan, np.inf])
def test_an_action_that_is_not_finite_is_refused_by_row(simulator, action):
    states, actions = simulator.reset(3, np.random.default_rng(0)), np.zeros((3, 1))
    actions[1] = action
    with pytest.raises(ValueError, match=r"actions: not finite in rows \[1\]"):
        simulator.step(states, actions)


def test_wrong_shapes_and_thread_counts_are_refused(simulator):
    states = simulator.reset(3, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        simulator.step(states, np.zeros(3))
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        simulator.step(states, np.zeros((2, 1)))
    with pytest.raises(ValueError, match="threads: got 0"):
        InvertedPendulum(threads=0)


def test_a_closed_simulator_says_so():
    simulator = InvertedPendulum(threads=2)
    states = simulator.reset(1, np.random.default_rng(0))
    simulator.close()
    simulator.close()
    with pytest.raises(RuntimeError, match="closed"):
        simulator.step(states, np.zeros((1, 1)))


@pytest.mark.parametrize(
    ("variables", "library", "expected"),
    [
        ({}, True, "egl"),
        ({}, False, None),
        ({"DISPLAY": ":0"}, True, None),
        ({"MUJOCO_GL": "disable"}, True, "disable"),
    ],
)
def test_off_screen_drawing_is_chosen_only_where_it_can_be(monkeypatch, variables, library, expected):
    """If EGL were chosen without its library, `import mujoco` would fail."""

    def open_library(name: str) -> object:
        if not library:
            raise OSError(name)
        return object()

    simulator_module.load_mujoco()  # the real import, in the real environment
    monkeypatch.setattr(simulator_module.sys, "platform", "linux")
    monkeypatch.setattr(simulator_module.os, "environ", dict(variables))
    monkeypatch.setattr(simulator_module.ctypes, "CDLL", open_library)
    assert simulator_module.load_mujoco().__name__ == "mujoco"
    assert simulator_module.os.environ.get("MUJOCO_GL") == expected
