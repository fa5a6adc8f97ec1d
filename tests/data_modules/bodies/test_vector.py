"""Episodes by the vector API: equal to single environments bit for bit; how they end, and how they resume."""

import gymnasium
import numpy as np
import pytest
import torch

from data_modules.bodies.vector import Bodies, make

HOPPER, DOUBLE = "Hopper-v5", "InvertedDoublePendulum-v5"


@pytest.fixture(scope="module")
def short():
    """A pendulum that stays up for longer than its 7 steps, under its own id."""
    entry_point = "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv"
    gymnasium.register("ShortPendulum-v0", entry_point=entry_point, max_episode_steps=7)
    yield "ShortPendulum-v0"
    del gymnasium.registry["ShortPendulum-v0"]


def begun(id, rows, seed=0):
    bodies = Bodies(id, rows)
    bodies.reset(bodies.over, np.random.default_rng(seed))
    return bodies


def stepped(bodies, rng, steps):
    """Random actions in all running rows; the results of each step, by row."""
    results = [[] for _ in range(len(bodies))]
    for _ in range(steps):
        rows = np.flatnonzero(~bodies.over)
        if not len(rows):
            break
        actions = rng.normal(size=(len(rows), bodies.action_dim)).astype(np.float32)
        for row, *outcome in zip(rows, *bodies.step(rows, actions), bodies.observe(rows).tolist(), strict=True):
            results[row].append(outcome)
    return results


@pytest.mark.parametrize("id", [HOPPER, DOUBLE, "HalfCheetah-v5"])
def test_every_row_is_gymnasiums_own_episode(id):
    """The same seeds and clipped actions in `gymnasium.make` give the same rewards, ends and observations."""
    bodies = begun(id, 5)
    starts = bodies.obs.copy()
    results = stepped(bodies, np.random.default_rng(1), 40)
    for row in range(5):
        env = gymnasium.make(id)
        obs, _ = env.reset(seed=int(bodies.seeds[row]))
        assert (obs == starts[row]).all()
        for action, (reward, terminated, over, following) in zip(bodies.actions[row], results[row], strict=True):
            clipped = np.clip(action, env.action_space.low, env.action_space.high)
            obs, expected, ended, truncated, _ = env.step(clipped)
            assert (reward, terminated, over) == (expected, ended, ended or truncated)
            assert obs.tolist() == following


def test_only_running_rows_are_stepped(monkeypatch):
    """Falling hoppers end at different times, and none is stepped after its end."""
    bodies = begun(HOPPER, 6)
    counts = dict.fromkeys(range(6), 0)
    for row, env in enumerate(bodies._whole.envs):

        def counted(action, row=row, step=env.step):
            counts[row] += 1
            return step(action)

        monkeypatch.setattr(env, "step", counted)
    results = stepped(bodies, np.random.default_rng(0), 200)
    assert bodies.over.all() and len({len(history) for history in results}) > 2
    assert (
        counts == {row: len(history) for row, history in enumerate(results)} == dict(enumerate(bodies.elapsed.tolist()))
    )


def test_out_of_time_is_over_and_not_terminated(short):
    bodies = begun(short, 3)
    for t in range(7):
        rewards, terminated, over = bodies.step(np.arange(3), np.zeros((3, 1), dtype=np.float32))
        assert (rewards == 1).all() and not terminated.any() and over.all() == (t == 6)
    assert bodies.elapsed.tolist() == [7] * 3 and bodies.returns.tolist() == [7] * 3


def test_a_reset_is_of_some_rows_and_disturbs_no_other():
    bodies, rng = begun(HOPPER, 4), np.random.default_rng(5)
    stepped(bodies, rng, 3)
    before, seeds, elapsed = bodies.obs.copy(), bodies.seeds.copy(), bodies.elapsed
    bodies.reset(np.array([False, True, False, False]), np.random.default_rng(7))
    untouched = [0, 2, 3]
    assert (bodies.obs[untouched] == before[untouched]).all() and (bodies.obs[1] != before[1]).any()
    assert (bodies.seeds[untouched] == seeds[untouched]).all() and bodies.seeds[1] != seeds[1]
    assert bodies.elapsed.tolist() == [elapsed[0], 0, elapsed[2], elapsed[3]] and bodies.returns[1] == 0


def test_actions_are_clipped_on_their_way_in():
    """Actions beyond the bounds count as the bounds: with 1000 unclipped the control cost would be enormous."""
    far_body, two = begun(HOPPER, 2), begun(HOPPER, 2)
    far = far_body.step(np.arange(2), np.full((2, 3), 1000, dtype=np.float32))
    near = two.step(np.arange(2), np.ones((2, 3), dtype=np.float32))
    assert (far[0] == near[0]).all() and (far_body.obs == two.obs).all()


def test_an_action_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"actions: not finite in rows \[1\]"):
        begun(DOUBLE, 2).step(np.arange(2), np.array([[0], [np.nan]], dtype=np.float32))


# ---- resuming from a checkpoint


@pytest.mark.parametrize("id", [HOPPER, DOUBLE, "Ant-v5"])
def test_what_is_loaded_goes_on_to_the_last_bit(id):
    """Ant's observations have contact forces, and its rewards have positions that MuJoCo computes a substep late."""
    bodies, rng = begun(id, 4), np.random.default_rng(0)
    stepped(bodies, rng, 3)
    restored = Bodies(id, 4)
    restored.load_state_dict(bodies.state_dict())
    for name in ("obs", "over", "seeds", "returns", "elapsed"):
        assert (getattr(restored, name) == getattr(bodies, name)).all(), name
    far_body, two = (stepped(x, np.random.default_rng(2), 9) for x in (bodies, restored))
    assert far_body == two and any(far_body)


def test_a_state_is_of_tensors():
    bodies = begun(HOPPER, 2)
    assert all(isinstance(x, torch.Tensor) for x in bodies.state_dict().values())
    Bodies(HOPPER, 2).load_state_dict(bodies.state_dict())  # before the first step


def test_an_episode_that_goes_another_way_begins_anew_and_says_so():
    bodies = begun(HOPPER, 3)
    stepped(bodies, np.random.default_rng(0), 4)
    state = bodies.state_dict()
    state["obs"][1, 0] += 1e-6
    restored = Bodies(HOPPER, 3)
    with pytest.warns(UserWarning, match="1 of 3 episodes of Hopper-v5 could not be replayed"):
        restored.load_state_dict(state)
    assert restored.over.tolist() == [False, True, False]


def test_another_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="envs: the checkpoint has 3 .* this run has 2"):
        Bodies(HOPPER, 2).load_state_dict(begun(HOPPER, 3).state_dict())


# ---- ids that are supported


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("Hoper-v5", "id: .*Hoper.*Available MuJoCo bodies: Ant-v5,.*Hopper-v5"),
        ("Hopper-v99", "id: .*v99"),
        ("CartPole-v1", r"id: the actions of CartPole-v1 are Discrete\(2\)"),
    ],
)
def test_refused(id, message):
    with pytest.raises(ValueError, match=message):
        make(id)


def test_episodes_without_a_limit_are_refused():
    entry_point = "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv"
    gymnasium.register("Endless-v0", entry_point=entry_point)
    try:
        with pytest.raises(ValueError, match="id: episodes of Endless-v0 have no limit"):
            make("Endless-v0")
    finally:
        del gymnasium.registry["Endless-v0"]


def test_observations_that_are_no_vector_are_refused(monkeypatch):
    class Pictured(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        action_space = gymnasium.spaces.Box(-1, 1, (1,))

    gymnasium.register("Pictured-v0", entry_point=Pictured, max_episode_steps=5)
    try:
        with pytest.raises(ValueError, match="id: the observations of Pictured-v0"):
            make("Pictured-v0")
    finally:
        del gymnasium.registry["Pictured-v0"]
