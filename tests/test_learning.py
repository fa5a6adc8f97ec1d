"""Does it learn? Permutation test over seeds of the returns of sampled episodes before and after a short training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from data_modules.label_buffer import LabelBuffer
from data_modules.pendulum import PendulumDataModule
from data_modules.pendulum.experts import LQRExpert
from data_modules.takeover import Always, Window
from lightning_nlf.maths.schedules import Linear
from lightning_nlf.networks import GaussianPolicy, MLPQValue, MLPValue
from lightning_nlf.objectives import (
    ActorCriticAgent,
    ImitationPolicy,
    InjectionPolicy,
    JointPolicy,
    QActorCriticAgent,
    ReinforcePolicy,
)

SEEDS = range(5)
LEVEL = 0.05


@dataclass
class Training:
    """A module with a training that is just long enough for it to learn."""

    make: Callable[..., Any]
    epochs: int
    lr: float = 0.02
    rollouts: dict[str, Any] = field(default_factory=dict)


TRAININGS = {
    "injection": Training(
        lambda **k: InjectionPolicy(imitation_weight=Linear(1.0, 0.0, 20_000), **k),
        epochs=4,
        rollouts={
            "episodes": 2,
            "horizon": 300,
            "expert": LQRExpert(0.1),
            "takeover": Window(20, 0.5),
            "label_buffer": (30, 256),
        },
    ),
    "joint": Training(JointPolicy, epochs=15, rollouts={"expert": LQRExpert(0.1), "label_share": 1.0}),
    "reinforce": Training(ReinforcePolicy, epochs=15),
    "a2c": Training(lambda **k: ActorCriticAgent(value=MLPValue(4), gamma=0.95, **k), epochs=20),
    "ppo": Training(
        lambda **k: ActorCriticAgent(value=MLPValue(4), clip=0.2, **k),
        epochs=12,
        lr=0.01,
        rollouts={"minibatches": 2, "passes": 4},
    ),
    # the critic learns faster, because a policy would follow the noise of an untrained Q
    "q": Training(
        lambda **k: QActorCriticAgent(q=MLPQValue(4, 1), network_lr={"q": 0.02}, gamma=0.9, **k),
        epochs=30,
        lr=0.001,
        rollouts={"passes": 8},
    ),
    "bc": Training(
        ImitationPolicy,
        epochs=2,
        rollouts={"episodes": 4, "horizon": 100, "passes": 30, "expert": LQRExpert(0.1), "takeover": Always()},
    ),
    "dagger": Training(
        ImitationPolicy,
        epochs=3,
        rollouts={"episodes": 4, "horizon": 300, "passes": 30, "expert": LQRExpert(0.1), "label_share": 1.0},
    ),
}


def p_value(before: list[float], after: list[float]) -> float:
    """p-value of the exact one-sided permutation test of mean(after) > mean(before): the share of splits as extreme."""
    pooled = np.array(before + after)
    sums = [pooled[list(chosen)].sum() for chosen in combinations(range(len(pooled)), len(after))]
    return float(np.mean(np.array(sums) >= sum(after) - 1e-9))


def returns(training: Training, seed: int, lr: float) -> tuple[float, float]:
    """Mean return of 8 sampled episodes of at most 300 steps, before and after."""
    torch.manual_seed(seed)
    module = training.make(policy=GaussianPolicy(4, 1), optimizer=lambda groups: torch.optim.Adam(groups, lr=lr))
    rollouts = {"episodes": 8, "threads": 1} | training.rollouts
    if "label_buffer" in rollouts:
        rollouts["label_buffer"] = LabelBuffer(*rollouts["label_buffer"])
    data = PendulumDataModule(seed=seed, evaluation_episodes=8, **rollouts)
    data.simulator.time_limit = 300
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=training.epochs,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data.trainer = trainer

    def mean_return(chance: int) -> float:
        torch.manual_seed(chance)
        batch = data.evaluate(module, np.random.default_rng(chance), deterministic=False)
        return float(batch.rewards.sum(1).mean())

    before = mean_return(2 * seed + 1000)
    trainer.fit(module, data)
    return before, mean_return(2 * seed + 1001)


def over_seeds(training: Training, lr: float) -> tuple[list[float], list[float]]:
    before, after = zip(*(returns(training, seed, lr) for seed in SEEDS), strict=True)
    return list(before), list(after)


def test_the_permutation_test_by_hand():
    """The 6 splits of 1, 2, 3, 4 into pairs have the sums 3, 4, 5, 5, 6, 7."""
    assert p_value([1, 2], [3, 4]) == pytest.approx(1 / 6)
    assert p_value([1, 3], [2, 4]) == pytest.approx(2 / 6)
    assert p_value([1, 4], [2, 3]) == pytest.approx(4 / 6)
    assert p_value([3, 4], [1, 2]) == 1
    assert p_value([7, 7], [7, 7]) == 1
    assert p_value([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(1 / 252)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_it_learns(name):
    training = TRAININGS[name]
    before, after = over_seeds(training, training.lr)
    assert p_value(before, after) < LEVEL, (before, after)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["injection", "reinforce"])
def test_without_a_learning_rate_it_does_not(name):
    """Control with learning rate 0: the episodes before and after differ, but nothing is learned."""
    before, after = over_seeds(TRAININGS[name], lr=0.0)
    assert before != after
    assert p_value(before, after) >= LEVEL, (before, after)
