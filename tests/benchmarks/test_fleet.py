"""Many runs in one process are the runs they would be alone, and those of the Trainer."""

import copy
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch

from benchmarks.study.convergence import evaluate
from benchmarks.study.fleet import Fleet
from benchmarks.study.learner import iterations, read
from data_modules.pendulum.episodes import play
from data_modules.pendulum.experts import LQRExpert
from data_modules.pendulum.simulator import InvertedPendulum
from data_modules.takeover import Window
from lightning_nlf.networks import GaussianPolicy
from lightning_nlf.objectives import ReinforcePolicy


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def in_a_fleet(name, seeds, count, changes):
    def job(seed):
        module, data, clip = read(name, changes, seed)
        data.play = fleet.play
        for _, _ in zip(range(count), iterations(module, data, clip), strict=False):
            pass
        return seed, weights(module), dict(data.counters)

    fleet = Fleet(read(name, changes, 0)[0].policy, slots=2)  # fewer than runs: one begins when another is done
    return {seed: own for seed, *own in fleet.run([partial(job, seed) for seed in seeds])}


def with_the_trainer(name, seed, count, changes):
    module, data, clip = read(name, changes, seed)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=count, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=clip,
    )  # fmt: skip
    trainer.fit(module, data)
    return weights(module), dict(data.counters)


@pytest.mark.parametrize(
    "name, count, changes",
    [
        ("reinforce", 6, {}),
        ("a2c", 6, {"data.horizon": 30}),
        ("joint", 2, {"data.label_share": 0.5, "data.label_buffer.updates": 5}),
        ("injection", 2, {"data.label_budget": 15, "data.label_buffer.updates": 5}),
    ],
)
def test_the_same_numbers_as_the_trainer(name, count, changes):
    """Rounding apart, which a batched product does in another order."""
    fleet = in_a_fleet(name, range(3), count, changes)
    for seed in range(3):
        expected, counters = with_the_trainer(name, seed, count, changes)
        own, counted = fleet[seed]
        assert counted == counters
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=0)


def test_every_request_is_what_play_would_have_given():
    simulator, policy = InvertedPendulum(threads=1), GaussianPolicy(4, 1)
    fleet = Fleet(policy, slots=4)

    def arguments(seed):
        """Stochastic, with take-overs and a budget; deterministic; continued after 990 steps; cut at a horizon."""
        rng = np.random.default_rng(seed)
        plan = Window(5, 1.0).plan(3, 40, 10.0, rng)
        more = [
            {"expert": LQRExpert(), "plan": plan, "expert_steps": 7},
            {"deterministic": True},
            {"returns": np.full(3, 990.0)},
            {},
        ][seed]
        elapsed = np.full(3, 990 if seed == 2 else 0)
        return (simulator.reset(3, rng), elapsed, 40), more

    def job(play, seed):
        actor = ReinforcePolicy(policy=copy.deepcopy(policy))
        torch.manual_seed(seed)
        with torch.no_grad():
            actor.policy.log_std.fill_(-1.0 + 0.3 * seed)
        positional, more = arguments(seed)
        batch, ended = play(actor, *positional, **more)
        return seed, batch, ended, torch.rand(1)  # where the generator stands afterwards

    together = {seed: own for seed, *own in fleet.run([partial(job, fleet.play, seed) for seed in range(4)])}
    for seed in range(4):
        _, batch, ended, chance = job(partial(play, simulator), seed)
        own, own_ended, own_chance = together[seed]
        assert own_chance == chance
        for name in ("obs", "actions", "log_probs", "rewards", "final_obs", "expert_actions"):
            if getattr(batch, name) is not None:
                torch.testing.assert_close(getattr(own, name), getattr(batch, name), atol=1e-5, rtol=1e-5)
        for name in ("valid", "mask", "terminated", "expert_mask"):
            if getattr(batch, name) is not None:
                assert torch.equal(getattr(own, name), getattr(batch, name))
        for name in ("elapsed", "over", "returns"):
            assert np.array_equal(getattr(own_ended, name), getattr(ended, name))


@pytest.mark.parametrize("gain, passed", [(1.0, True), (0.1, False)])
def test_a_verdict_is_that_of_ten_whole_episodes(gain, passed):
    """The optimal gain holds the pole for 1000 steps, a tenth of it does not; a linear policy is a network of one."""
    policy = GaussianPolicy(4, 1, hidden=[])
    with torch.no_grad():
        policy.net[0].weight.copy_(gain * LQRExpert().gain.T)
        policy.net[0].bias.zero_()
    fleet = Fleet(policy, slots=1)
    found = list(fleet.run([lambda: evaluate(fleet, policy, np.random.default_rng(0), deterministic=True)]))
    simulator = InvertedPendulum(threads=1)
    states = simulator.reset(10, np.random.default_rng(0))
    actor = ReinforcePolicy(policy=policy)
    batch, _ = play(simulator, actor, states, np.zeros(10, dtype=np.int64), 1000, deterministic=True)
    whole = batch.rewards.sum(1)
    assert (float(whole.mean()) >= 950) is passed
    ((verdict, preview, steps),) = found
    assert verdict is passed and preview == whole[0]
    assert (steps == 10_000) is passed and steps <= 10_000
