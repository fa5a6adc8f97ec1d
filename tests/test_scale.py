"""Updates do not depend on how rows are divided into micro-batches or over two processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch

from data_modules.label_buffer import LabelBuffer
from data_modules.offline import OfflineDataModule, load_batch, save_batch
from data_modules.pendulum import PendulumDataModule
from data_modules.pendulum.experts import LQRExpert
from lightning_nlf.batch import Batch
from lightning_nlf.modules import PolicyModule
from lightning_nlf.networks import GaussianPolicy, MLPValue
from lightning_nlf.objectives import (
    ActorCriticAgent,
    JointAgent,
    OneStepRLHFPolicy,
    ReinforcePolicy,
    RLHFAgent,
    ShapedInjectionPolicy,
    SummedJointPolicy,
    kl_penalty,
)
from lightning_nlf.objectives.actor_critic import ValueObjective
from lightning_nlf.objectives.injection import WeightedInjectionObjective
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective

LENGTHS = (1, 40, 3, 17, 2, 29, 8, 5, 11, 23, 4, 2)
BUDGET = 61  # labels of the rollouts


class WeightedInjectionAgent(WeightedInjectionObjective, ValueObjective, PolicyGradientObjective, PolicyModule):
    pass


def slowly(parameters: Any) -> torch.optim.Optimizer:
    """SGD with a small learning rate, for a loss that is a sum over a hundred steps instead of a mean."""
    return torch.optim.SGD(parameters, lr=0.0005, momentum=0.9)


MODULES: dict[str, Callable[..., Any]] = {
    "reinforce": lambda **knobs: ReinforcePolicy(baseline="batch_mean", entropy_weight=0.02, **knobs),
    "joint": lambda **knobs: JointAgent(value=MLPValue(4), imitation_weight=0.5, **knobs),
    "weighted": lambda **knobs: WeightedInjectionAgent(value=MLPValue(4), **knobs),
    "shaped": lambda **knobs: ShapedInjectionPolicy(**knobs),
    "summed": lambda **knobs: SummedJointPolicy(entropy_weight=0.02, **knobs | {"optimizer": slowly}),
    "ppo": lambda **knobs: ActorCriticAgent(value=MLPValue(4), clip=0.1, value_clip=0.02, **knobs),
    "leashed": lambda **knobs: RLHFAgent(
        value=MLPValue(4), clip=0.1, kl_weight=0.1, kl_target=0.5, whiten_rewards=True, **knobs
    ),
    "one_step": lambda **knobs: OneStepRLHFPolicy(baseline="batch_mean", entropy_weight=0.02, **knobs),
}


def rows_of_very_different_lengths() -> Batch:
    """Rows of very different lengths; an expert acted on 5 steps of two rows of the second process; half truncated."""
    generator = torch.Generator().manual_seed(0)
    shape = len(LENGTHS), max(LENGTHS)
    valid = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
    injected = torch.zeros_like(valid)
    injected[1, 5:8] = injected[5, 20:22] = True

    def random(*last_dims: int) -> torch.Tensor:
        return torch.randn(*shape, *last_dims, generator=generator)

    return Batch(
        obs=random(4),
        actions=random(1),
        valid=valid,
        mask=valid & ~injected,
        log_probs=-1.4 + 0.3 * random(),
        rewards=1 + random(),
        final_obs=torch.randn(len(LENGTHS), 4, generator=generator),
        terminated=torch.arange(len(LENGTHS)) % 2 == 0,
        expert_actions=random(1),
        expert_mask=injected,
        expert_params={"mean": random(1), "std": random(1).exp()},
    )


def make_module(name: str) -> L.LightningModule:
    torch.manual_seed(0)
    optimizer = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)  # noqa: E731
    return MODULES[name](policy=GaussianPolicy(4, 1), optimizer=optimizer)


def parameters(module: L.LightningModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def trained(module: L.LightningModule, data: L.LightningDataModule, epochs: int = 2, **knobs: Any) -> L.Trainer:
    trainer = L.Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_epochs": epochs} | knobs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with mock.patch.object(kl_penalty, "KL_HORIZON", 20):  # so that few rows change β noticeably
        trainer.fit(module, data)
    return trainer


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.pt"
    save_batch(rows_of_very_different_lengths(), path)
    return str(path)


# ---- gradient accumulation


@pytest.mark.parametrize("name", MODULES)
def test_accumulated_gradients_are_those_of_the_whole(name, path):
    """Three optimizer steps per epoch on 4 rows each, together or one row at a time."""
    after = []
    for accumulate in (1, 4):
        module = make_module(name)
        trainer = trained(module, OfflineDataModule(path, minibatches=3), accumulate_grad_batches=accumulate)
        assert trainer.global_step == 6
        after.append(parameters(module))
    assert (after[0] - parameters(make_module(name))).abs().max() > 1e-2
    torch.testing.assert_close(after[1], after[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODULES)
def test_the_order_of_the_rows_does_not_matter(name, path, tmp_path):
    save_batch(load_batch(path)[torch.arange(len(LENGTHS)).flip(0)], tmp_path / "reversed.pt")
    after = []
    for file in (path, str(tmp_path / "reversed.pt")):
        module = make_module(name)
        trained(module, OfflineDataModule(file, passes=3))
        after.append(parameters(module))
    torch.testing.assert_close(after[1], after[0], atol=1e-5, rtol=0)


# ---- two processes, in one launch of Lightning's own


class Recorded(PendulumDataModule):
    """Records the batches of this rank, before and after preparation."""

    def __init__(self, **knobs: Any) -> None:
        super().__init__(**knobs)
        self.collections: list[Batch] = []

    def cut(self, batch, rng):
        self.collections.append(batch)
        for part in super().cut(batch, rng):
            self.parts += 1
            yield part

    parts = 0


def in_two_processes(path: str, folder: str) -> None:
    """Code of each process: train every module on the file, then one on rollouts, and save the results."""
    result: dict[str, Any] = {}
    two = {"strategy": "ddp", "devices": 2}
    for name in MODULES:
        module = make_module(name)
        result[name] = trained(module, OfflineDataModule(path, passes=3), **two).world_size, parameters(module)
    module = make_module("joint")
    data = Recorded(
        episodes=5,
        evaluation_episodes=3,
        horizon=50,
        minibatches=2,
        passes=2,
        expert=LQRExpert(0.1),
        label_share=0.5,
        label_budget=BUDGET,
        label_buffer=LabelBuffer(updates=3, rows=16),
        threads=1,
    )
    trainer = trained(module, data, epochs=4, **two)
    result["rollouts"] = {
        "parameters": parameters(module),
        "experience": float(module.experience),
        "global_step": trainer.global_step,
        "parts": data.parts,
        "counters": data.counters,
        "return": float(trainer.callback_metrics["val/return"]),
        "starts": [batch.obs[:, 0].clone() for batch in data.collections],
        "steps": [int(batch.valid.sum()) for batch in data.collections],
        "labels": [int(batch.expert_mask.sum()) for batch in data.collections],
        "advantages": [batch.advantages[batch.mask] for batch in data.collections],
    }
    torch.save(result, Path(folder) / f"rank{trainer.global_rank}.pt")


@pytest.fixture(scope="module")
def ranks(path, on_two_processes):
    """Results that the two processes saved."""
    return on_two_processes(__file__, path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_two_processes_make_the_update_of_one(name, ranks, path):
    module = make_module(name)
    trained(module, OfflineDataModule(path, passes=3))
    assert (parameters(module) - parameters(make_module(name))).abs().max() > 1e-2
    for rank in ranks:
        world_size, after = rank[name]
        assert world_size == 2
        torch.testing.assert_close(after, parameters(module), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_two_processes_play_different_episodes(ranks):
    for first, second in zip(*(rank["rollouts"]["starts"] for rank in ranks), strict=True):
        assert len(first) == 3 and len(second) == 2
        assert not torch.isin(first, second).any()


@pytest.mark.slow
def test_two_processes_count_together(ranks):
    """Counters, experience and the budget cover both processes; each made 4 × (2 · 2 + 3) updates."""
    rollouts = [rank["rollouts"] for rank in ranks]
    steps = sum(sum(result["steps"]) for result in rollouts)
    assert sum(sum(result["labels"]) for result in rollouts) == BUDGET
    for result in rollouts:
        assert result["counters"] == {"iteration": 4, "env_steps": steps, "expert_steps": 0, "labels": BUDGET}
        assert result["experience"] == steps
        assert result["global_step"] == result["parts"] == 4 * (2 * 2 + 3)
    assert rollouts[0]["steps"] != rollouts[1]["steps"]
    assert rollouts[0]["return"] == rollouts[1]["return"] > 0


@pytest.mark.slow
def test_two_processes_whiten_together(ranks):
    """Advantages have mean 0 and variance 1 over both processes, but not over one of them."""
    for pair in zip(*(rank["rollouts"]["advantages"] for rank in ranks), strict=True):
        together = torch.cat(pair)
        assert float(together.mean()) == pytest.approx(0, abs=1e-4)
        assert float(together.var(correction=0)) == pytest.approx(1, abs=1e-3)
        assert abs(float(pair[0].mean())) > 1e-3


@pytest.mark.slow
def test_two_processes_stay_one_model(ranks):
    first, second = (rank["rollouts"]["parameters"] for rank in ranks)
    assert torch.equal(first, second)
    assert (first - parameters(make_module("joint"))).abs().max() > 1e-2
