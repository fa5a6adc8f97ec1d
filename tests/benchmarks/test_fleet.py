"""Runs in a fleet equal single runs and runs of the Trainer."""

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

    fleet = Fleet(
        read(name, changes, 0)[0].policy, slots=2
    )  # fewer slots than runs, so that a run waits for a free one
    return {seed: outcome for seed, *outcome in fleet.run([partial(job, seed) for seed in seeds])}


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
        ("pendulum/reinforce", 6, {}),
        ("pendulum/a2c", 6, {"data.horizon": 30}),
        ("pendulum/joint", 2, {"data.label_share": 0.5, "data.label_buffer.updates": 5}),
        ("injection", 2, {"data.label_budget": 15, "data.label_buffer.updates": 5}),
    ],
)
def test_the_same_numbers_as_the_trainer(name, count, changes):
    """Equal up to rounding, because a batched product adds in another order."""
    fleet = in_a_fleet(name, range(3), count, changes)
    for seed in range(3):
        expected, counters = with_the_trainer(name, seed, count, changes)
        fleet_weights, counted = fleet[seed]
        assert counted == counters
        torch.testing.assert_close(fleet_weights, expected, atol=1e-4, rtol=0)


def test_every_request_is_what_play_would_have_given():
    simulator, policy = InvertedPendulum(threads=1), GaussianPolicy(4, 1)
    fleet = Fleet(policy, slots=4)

    def arguments(seed):
        """Stochastic with take-overs and a budget; deterministic; continued after 990 steps; cut off at a horizon."""
        rng = np.random.default_rng(seed)
        plan = Window(5, 1.0).plan(3, 40, 10.0, rng)
        keywords = [
            {"expert": LQRExpert(), "plan": plan, "expert_steps": 7},
            {"deterministic": True},
            {"returns": np.full(3, 990.0)},
            {},
        ][seed]
        elapsed = np.full(3, 990 if seed == 2 else 0)
        return (simulator.reset(3, rng), elapsed, 40), keywords

    def job(play, seed):
        actor = ReinforcePolicy(policy=copy.deepcopy(policy))
        torch.manual_seed(seed)
        with torch.no_grad():
            actor.policy.log_std.fill_(-1.0 + 0.3 * seed)
        positional, keywords = arguments(seed)
        batch, ended = play(actor, *positional, **keywords)
        return seed, batch, ended, torch.rand(1)  # shows the generator's state afterwards

    together = {
        seed: fleet_batch for seed, *fleet_batch in fleet.run([partial(job, fleet.play, seed) for seed in range(4)])
    }
    for seed in range(4):
        _, batch, ended, chance = job(partial(play, simulator), seed)
        fleet_batch, fleet_ended, fleet_chance = together[seed]
        assert fleet_chance == chance
        for name in ("obs", "actions", "log_probs", "rewards", "final_obs", "expert_actions"):
            if getattr(batch, name) is not None:
                torch.testing.assert_close(getattr(fleet_batch, name), getattr(batch, name), atol=1e-5, rtol=1e-5)
        for name in ("valid", "mask", "terminated", "expert_mask"):
            if getattr(batch, name) is not None:
                assert torch.equal(getattr(fleet_batch, name), getattr(batch, name))
        for name in ("elapsed", "over", "returns"):
            assert np.array_equal(getattr(fleet_ended, name), getattr(ended, name))


@pytest.mark.parametrize("gain, passed", [(1.0, True), (0.1, False)])
def test_a_verdict_is_that_of_ten_whole_episodes(gain, passed):
    """The optimal gain balances the pole for 1000 steps, a tenth of it does not; the policy is one linear layer."""
    policy = GaussianPolicy(4, 1, hidden=[])
    with torch.no_grad():
        policy.net[0].weight.copy_(gain * LQRExpert().gain.T)
        policy.net[0].bias.zero_()
    fleet = Fleet(policy, slots=1)
    results = list(fleet.run([lambda: evaluate(fleet, policy, np.random.default_rng(0), deterministic=True)]))
    simulator = InvertedPendulum(threads=1)
    states = simulator.reset(10, np.random.default_rng(0))
    actor = ReinforcePolicy(policy=policy)
    batch, _ = play(simulator, actor, states, np.zeros(10, dtype=np.int64), 1000, deterministic=True)
    whole = batch.rewards.sum(1)
    assert (float(whole.mean()) >= 950) is passed
    ((verdict, preview, steps),) = results
    assert verdict is passed and preview == whole[0]
    assert (steps == 10_000) is passed and steps <= 10_000
