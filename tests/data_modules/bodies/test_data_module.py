"""Collections on gymnasium's bodies: rows, ends of episodes, take-overs, labels, budgets, and resuming."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from data_modules.bodies import GymnasiumDataModule
from data_modules.bodies import rendering as body_rendering
from data_modules.label_buffer import LabelBuffer
from data_modules.pendulum.episodes import play
from data_modules.pendulum.experts import LQRExpert
from data_modules.pendulum.simulator import InvertedPendulum
from data_modules.takeover import Always, Window
from lightning_nlf.maths.returns import gae
from lightning_nlf.networks import GaussianPolicy, MLPValue
from lightning_nlf.objectives import ActorCriticAgent, ImitationPolicy

PENDULUM, HOPPER = "InvertedPendulum-v5", "Hopper-v5"
EXPERT = LQRExpert(0.1)


class Balancing:
    """Acts like the LQR without noise, so it never falls."""

    def act(self, obs, state=None, deterministic=False):
        return EXPERT.act(obs)[2]["mean"], torch.zeros(len(obs)), None, None

    def prepare(self, batch):
        return batch


class Hopping(Balancing):
    """Its actions depend on the observation only, so that rows can be replayed."""

    def act(self, obs, state=None, deterministic=False):
        return torch.sin(7 * obs[:, :3]), torch.zeros(len(obs)), None, None


def learner(obs_dim=4, action_dim=1):
    torch.manual_seed(0)
    return ImitationPolicy(policy=GaussianPolicy(obs_dim, action_dim))


def new_data(actor, epoch=0, rank=0, world_size=1, **knobs):
    """A data module as in a Trainer."""
    data = GymnasiumDataModule(**{"id": PENDULUM, "envs": 3, "horizon": 1000, "evaluation_episodes": 2} | knobs)
    data.trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(root_device=torch.device("cpu"), reduce=lambda x, reduce_op: x * world_size),
        world_size=world_size,
        global_rank=rank,
        current_epoch=epoch,
        accumulate_grad_batches=1,
        lightning_module=actor,
    )
    return data


def collected(data):
    """The whole collection of the next epoch."""
    (batch, *_) = data.iteration()
    data.trainer.current_epoch += 1
    return batch


@pytest.fixture(scope="module")
def short():
    """A pendulum with a limit of 50 steps, under its own id."""
    entry_point = "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv"
    gymnasium.register("FiftySteps-v0", entry_point=entry_point, max_episode_steps=50)
    yield "FiftySteps-v0"
    del gymnasium.registry["FiftySteps-v0"]


# ---- rows and ends of episodes


def test_the_pendulum_is_the_pendulum():
    """gymnasium's environments give the same rows as the batched simulator, bit for bit while off the rail's ends."""
    actor = learner()
    data = new_data(actor, envs=6, horizon=25)

    class Mode:
        def act(self, obs, state=None, deterministic=False):
            return actor.act(obs, state, True)

    batch = data.collect(Mode(), np.random.default_rng(0))
    simulator = InvertedPendulum(1)
    starts = np.concatenate([simulator.reset(1, np.random.default_rng(seed)) for seed in data.bodies.seeds])
    expected, ended = play(simulator, Mode(), starts, np.zeros(6, dtype=np.int64), 25)
    for name in ("obs", "actions", "valid", "mask", "rewards", "log_probs", "terminated", "final_obs"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    assert batch.terminated.any() and (data.bodies.over == ended.over).all()


def test_no_boundary_lies_inside_a_row():
    """Every step of a row follows from the step before: replayed in one environment, it is the same episode."""
    data = new_data(Hopping(), id=HOPPER, envs=4, horizon=15, min_steps=300)
    batch = collected(data)
    assert len(batch) > 4 and batch.terminated.any() and not batch.terminated.all()
    for row, replay in enumerate(data._replays):
        env = gymnasium.make(HOPPER)
        obs, _ = env.reset(seed=replay.seed)
        assert replay.stop - replay.start == int(batch.valid[row].sum())
        for t, action in enumerate(replay.actions[: replay.stop]):
            step = t - replay.start
            if step >= 0:
                assert np.array_equal(obs.astype(np.float32), batch.obs[row, step].numpy())
            obs, reward, terminated, *_ = env.step(np.clip(action, -1, 1))
            assert terminated == (t == replay.stop - 1 and bool(batch.terminated[row]))
            if step >= 0:
                assert batch.rewards[row, step] == pytest.approx(reward, rel=1e-6)
        assert np.array_equal(obs.astype(np.float32), batch.final_obs[row].numpy())


def test_an_episode_cut_by_the_horizon_goes_on():
    data = new_data(Balancing(), horizon=20, min_steps=120)
    first, second = collected(data), collected(data)
    assert first.valid.shape == second.valid.shape == (6, 20) and first.valid.all()
    assert not first.terminated.any()
    torch.testing.assert_close(first.obs[3:, 0], first.final_obs[:3], rtol=0, atol=0)  # the second wave
    torch.testing.assert_close(second.obs[:3, 0], first.final_obs[3:], rtol=0, atol=0)  # the second collection
    assert data.counters["env_steps"] == 240 and data.statistics == {}


def test_out_of_time_is_truncated_and_the_next_is_fresh(short):
    data = new_data(Balancing(), id=short, horizon=20)
    lengths, starts, logged = [], [], []
    for _ in range(4):
        batch = collected(data)
        logged.append(data.statistics)
        assert not batch.terminated.any()
        lengths.append(batch.valid.sum(1).tolist())
        starts.append(batch.obs[:, 0])
    assert lengths == [[20] * 3, [20] * 3, [10] * 3, [20] * 3]
    assert (starts[3].abs() <= 0.01).all() and not torch.equal(starts[3], starts[0])
    # Without an episode that ended there are no statistics: old values would belong to another collection.
    assert logged == [{}, {}, {"return": 50, "length": 50}, {}]


def test_a_truncated_row_is_bootstrapped_from_its_own_last_state_and_a_terminated_one_is_not(short):
    """λ = 1: the return of the last step is r + γ V(s_T) if truncated, and r if the body fell."""
    torch.manual_seed(0)
    module = ActorCriticAgent(policy=GaussianPolicy(4, 1), value=MLPValue(4), gamma=0.9, lam=1.0)
    cut = collected(new_data(Balancing(), id=short))
    fallen = collected(new_data(learner(), id=PENDULUM))
    assert not cut.terminated.any() and fallen.terminated.all()
    for batch, worth in ((cut, 1.0), (fallen, 0.0)):
        prepared = module.prepare(batch)
        last = batch.valid.sum(1) - 1
        rows = torch.arange(len(batch))
        beyond = module.value(batch.final_obs).detach()
        assert (beyond.abs() > 1e-3).all()
        expected = batch.rewards[rows, last] + worth * 0.9 * beyond
        torch.testing.assert_close(prepared.returns[rows, last], expected)
        values = prepared.values
        whole = gae(batch.rewards, values, worth * beyond, batch.valid, 0.9, 1.0) + values
        torch.testing.assert_close(prepared.returns[batch.valid], whole[batch.valid])


def test_statistics_are_of_whole_episodes():
    """Returns and lengths of whole episodes, over all fragments, in the body's own units."""
    data = new_data(Hopping(), id=HOPPER, envs=4, horizon=7, min_steps=200, reward_scale=0.5)
    batch = collected(data)
    whole = new_data(Hopping(), id=HOPPER, envs=4, min_steps=200)
    expected = collected(whole)
    assert data.statistics["length"] == pytest.approx(np.mean([n for _, n in data.finished]))
    assert whole.statistics["length"] == pytest.approx(expected.valid.sum(1).float().mean().item())
    assert whole.statistics["return"] == pytest.approx(expected.rewards.sum(1).mean().item(), rel=1e-5)
    steps = sum(n for _, n in data.finished) + sum(data.bodies.elapsed[~data.bodies.over])
    assert steps == int(batch.valid.sum()) == data.counters["env_steps"]
    rewards = sum(r for r, _ in data.finished) + data.bodies.returns[~data.bodies.over].sum()
    assert rewards == pytest.approx(2 * float(batch.rewards.sum()), rel=1e-5)


# ---- the expert


def test_injected_steps_are_the_experts():
    batch = collected(new_data(learner(), expert=EXPERT, takeover=Window(5, 1.0), envs=8))
    injected = batch.valid & ~batch.mask
    assert injected.any() and batch.mask.any() and torch.equal(injected, batch.expert_mask)
    mean = EXPERT.act(batch.obs[injected])[2]["mean"]
    torch.testing.assert_close(batch.expert_params["mean"][injected], mean)
    assert torch.equal(batch.actions[injected], batch.expert_actions[injected])


def test_with_always_the_learner_never_acts():
    data = new_data(learner(), expert=EXPERT, takeover=Always(), horizon=60)
    batch = collected(data)
    assert batch.valid.all() and batch.valid.shape[1] == 60 and not batch.mask.any()
    assert data.counters == {"iteration": 1, "env_steps": 180, "expert_steps": 180, "labels": 180}


def test_a_share_of_the_learners_states_is_labelled():
    data = new_data(learner(), expert=EXPERT, takeover=Window(5, 0.5), label_share=0.5, envs=16)
    batch = collected(data)
    injected, labelled = batch.valid & ~batch.mask, batch.expert_mask & batch.mask
    assert int(labelled.sum()) == round(0.5 * int(batch.mask.sum()))
    assert data.counters["labels"] == int(labelled.sum()) + int(injected.sum())


@pytest.mark.parametrize("takeover", [None, Window(4, 1.0), Always()], ids=["labels", "both", "expert"])
def test_the_budget_is_spent_to_the_last_label_and_no_further(takeover):
    labels = []
    data = new_data(learner(), expert=EXPERT, takeover=takeover, label_share=0.3, label_budget=97, min_steps=40)
    while len(labels) < 30 and sum(labels) < 97:
        labels.append(int(collected(data).expert_mask.sum()))
    assert sum(labels) == data.counters["labels"] == 97
    assert not collected(data).expert_mask.any()


def test_the_label_buffer_is_fed_with_every_label():
    data = new_data(learner(), expert=EXPERT, label_share=1.0, label_buffer=LabelBuffer(updates=2, rows=16))
    for _ in range(2):
        collected(data)
    assert len(data.label_buffer.labels) == data.counters["labels"] > 0


# ---- evaluation


def test_evaluation_is_of_whole_episodes_on_seeds_of_their_own_and_disturbs_nothing():
    data, undisturbed = new_data(Balancing(), horizon=10), new_data(Balancing(), horizon=10)
    collected(data), collected(undisturbed)
    counters = dict(data.counters)
    first, again = ([next(iter(loader)) for loader in data.val_dataloader()] for _ in range(2))
    assert first[0].valid.sum(1).tolist() == [1000, 1000] and not first[0].terminated.any()
    assert all(torch.equal(x.obs, y.obs) for x, y in zip(first, again, strict=True))
    assert not set(first[0].obs[:, 0].flatten().tolist()) & set(first[1].obs[:, 0].flatten().tolist())
    assert data.counters == counters
    assert torch.equal(collected(data).obs, collected(undisturbed).obs)


def test_what_is_learned_from_is_scaled_and_what_is_reported_is_not():
    left, two = new_data(Hopping(), id=HOPPER), new_data(Hopping(), id=HOPPER, reward_scale=0.01)
    full, scaled = collected(left), collected(two)
    torch.testing.assert_close(scaled.rewards, full.rewards * 0.01)
    assert left.statistics == two.statistics
    torch.testing.assert_close(two.exhibit_rows["training"].rewards, left.exhibit_rows["training"].rewards)
    returns = [next(iter(data.val_dataloader()[0])).rewards for data in (left, two)]
    assert torch.equal(*returns)


# ---- resuming


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped():
    knobs = {"expert": EXPERT, "takeover": Window(3, 0.5), "label_share": 0.2, "label_budget": 60, "horizon": 4}
    data = new_data(learner(), **knobs)
    for _ in range(2):
        collected(data)
    assert not data.bodies.over.all()  # some episodes must continue
    resumed = new_data(learner(), epoch=2, **knobs)
    resumed.load_state_dict(data.state_dict())
    for _ in range(3):
        left, two = collected(data), collected(resumed)
        for name in ("obs", "actions", "rewards", "expert_mask", "final_obs"):
            assert torch.equal(getattr(left, name), getattr(two, name)), name
    assert resumed.counters == data.counters and resumed.statistics == data.statistics


def test_ranks_share_the_environments():
    """Five over two processes: three and two, with different seeds."""
    by_rank = [new_data(learner(), rank=rank, world_size=2, envs=5) for rank in range(2)]
    rows = [collected(data) for data in by_rank]
    assert [len(batch) for batch in rows] == [3, 2]
    assert not set(rows[0].obs[:, 0].flatten().tolist()) & set(rows[1].obs[:, 0].flatten().tolist())


# ---- errors


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"id": "CartPole-v1"}, "id: the actions of CartPole-v1 are Discrete"),
        ({"id": "Hoper-v5"}, "id: .*Available MuJoCo bodies"),
        ({"envs": 0}, "envs: got 0"),
        ({"horizon": 0}, "horizon: got 0"),
        ({"reward_scale": 0}, "reward_scale: got 0"),
        ({"takeover": Always()}, "expert: takeover"),
    ],
)
def test_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        GymnasiumDataModule(**{"id": PENDULUM} | knobs)


def test_fewer_environments_than_minibatches_are_refused():
    with pytest.raises(ValueError, match="envs: got 3 rows, must be at least 4"):
        collected(new_data(Balancing(), minibatches=4))


# ---- pictures


def test_an_episode_is_shown_where_there_is_a_context(tmp_path):
    data = new_data(learner(11, 3), id=HOPPER, horizon=12)
    collected(data), collected(data)
    next(iter(data.val_dataloader()[0]))
    paths = data.exhibits(tmp_path)
    if not paths:
        pytest.skip("no OpenGL here")
    from PIL import Image

    assert [path.name for path in paths] == ["training.gif", "evaluation.gif"]
    for path in paths:
        assert path.stat().st_size <= 1_000_000
        with Image.open(path) as gif:
            assert gif.size == (480, 300) and 1 <= gif.n_frames <= 40


def test_without_a_context_there_is_no_picture_and_no_error(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no context")

    monkeypatch.setattr(body_rendering, "make", refuse)
    data = new_data(Balancing())
    collected(data)
    assert data.exhibits(tmp_path) == [] and not list(tmp_path.iterdir())
