"""Complete RL runs on a toy dialogue: logging, resuming, learning rate schedule, and learning."""

from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from data_modules.text import TokenTaskDataModule
from lightning_nlf.networks import GRUPolicy, GRUValue, Value
from lightning_nlf.objectives import OneStepRLHFPolicy, RLHFAgent, RLHFPolicy, kl_penalty
from lightning_nlf.objectives.policy_gradient import importance_ratio

EPOCHS = 4


class HeadOnTrunk(Value):
    """Value as a linear head on the policy's features, initialised to 0."""

    on_policy = True

    def __init__(self, width):
        super().__init__()
        self.head = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.head.weight)

    def forward(self, obs, where=None):
        return self.head(obs).squeeze(-1)


PPO = {"clip": 0.2, "value_clip": 0.2, "value_weight": 0.1, "lam": 0.95, "kl_target": 0.1, "whiten_rewards": True}
MAKERS = {
    "ppo": lambda policy, **knobs: RLHFAgent(policy=policy, value=GRUValue(12, 16), **PPO | knobs),
    "shared": lambda policy, **knobs: RLHFAgent(policy=policy, value=HeadOnTrunk(16), **PPO | knobs),
    "rloo": lambda policy, **knobs: RLHFPolicy(policy=policy, baseline="leave_one_out", kl_target=0.1, **knobs),
    "grpo": lambda policy, **knobs: RLHFPolicy(
        policy=policy,
        beta=0.0,
        kl_weight=0.04,
        baseline="group_mean",
        advantage_scale="group_std",
        normalize_advantages=False,
        clip=0.2,
        **knobs,
    ),
    "one_step": lambda policy, **knobs: OneStepRLHFPolicy(policy=policy, clip=0.2, kl_target=0.1, **knobs),
}


def adam(groups):
    return torch.optim.Adam(groups, lr=0.01, eps=1e-5)


def make_agent(kind, seed=0):
    torch.manual_seed(seed)
    to_zero = partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=EPOCHS)
    return MAKERS[kind](GRUPolicy(vocabulary=12, width=16), gamma=1.0, optimizer=adam, lr_scheduler=to_zero)


def task():
    return TokenTaskDataModule(prompts=8, replies=4, passes=2, minibatches=2, evaluation_prompts=4)


def fitted(module, epochs, folder, callbacks=(), ckpt_path=None, data=None):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0, gradient_clip_val=1.0, log_every_n_steps=1,
        callbacks=[ModelCheckpoint(folder, save_last=True), *callbacks],
    )  # fmt: skip
    trainer.fit(module, data or task(), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("kind", MAKERS)
def test_a_run_that_was_interrupted_ends_where_it_would_have(kind, tmp_path):
    """Four epochs equal two and two bit for bit: networks, β, optimizer and learning rate."""
    whole = fitted(make_agent(kind), EPOCHS, tmp_path / "whole")
    fitted(make_agent(kind), 2, tmp_path / "first")
    resumed = fitted(make_agent(kind), EPOCHS, tmp_path / "second", ckpt_path=tmp_path / "first" / "last.ckpt")
    assert resumed.global_step == whole.global_step == 4 * EPOCHS
    start = make_agent(kind).state_dict()
    for name, x in whole.state_dict().items():
        assert not torch.equal(x, start[name]), name
        assert torch.equal(x, resumed.state_dict()[name]), name


def test_another_reference_is_refused(tmp_path):
    fitted(make_agent("rloo"), 1, tmp_path)
    with pytest.raises(ValueError, match="the reference differs from"):
        fitted(make_agent("rloo", seed=1), 2, tmp_path, ckpt_path=tmp_path / "last.ckpt")


class LearningRates(L.Callback):
    """Records the learning rate of every optimizer step."""

    def __init__(self):
        self.values = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.values.append(optimizer.param_groups[0]["lr"])


def test_the_learning_rate_falls_to_zero_over_the_run(tmp_path):
    """One schedule step per collection of four optimizer steps: 1, ¾, ½, ¼ of .01, and 0 after the end."""
    rates = LearningRates()
    module = fitted(make_agent("rloo"), EPOCHS, tmp_path, [rates])
    assert rates.values == pytest.approx([0.01] * 4 + [0.0075] * 4 + [0.005] * 4 + [0.0025] * 4)
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_what_is_logged(tmp_path):
    metrics = fitted(make_agent("ppo"), 1, tmp_path).trainer.callback_metrics
    names = ["score", "kl", "non_score_reward", "beta", "policy_entropy", "explained_variance", "policy", "value"]
    names += ["clip_fraction", "approx_kl", "ratio_mean", "ratio_variance"]
    assert {f"train/{name}" for name in names} <= metrics.keys()
    assert 0 <= metrics["train/score"] <= 1 and metrics["train/beta"] == pytest.approx(0.15, abs=0.001)
    assert metrics["train/policy_entropy"] == pytest.approx(np.log(12), abs=0.2)  # 12 tokens, nearly uniform


@pytest.mark.parametrize("kind", ["ppo", "shared"])
def test_what_was_said_is_as_likely_when_it_is_read_again(kind, tmp_path):
    """Log-probabilities token by token and in one pass agree: the ratio is 1, and the KL from the reference 0."""
    module, data = make_agent(kind), task()
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.trainer = module.trainer
    batch = module.prepare(data.collect(module, np.random.default_rng(0)))
    ratio = importance_ratio(module.evaluate(batch).log_probs, batch.log_probs, batch.mask)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.ref_log_probs[batch.mask], batch.log_probs[batch.mask], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("knobs", "low", "high"), [({"beta": 0.0}, 5, 50), ({"beta": 0.02, "kl_target": 2.0}, 1, 4)])
def test_ppo_learns_and_the_leash_holds(knobs, low, high, tmp_path, monkeypatch):
    """An untrained policy scores about .05; without a KL penalty it is soon more than 5 nats from the reference."""
    monkeypatch.setattr(kl_penalty, "KL_HORIZON", 500)
    torch.manual_seed(0)
    module = MAKERS["ppo"](
        GRUPolicy(vocabulary=12, width=32),
        gamma=1.0,
        optimizer=adam,
        **{"kl_target": None, "whiten_rewards": False} | knobs,
    )
    data = TokenTaskDataModule(prompts=32, replies=4, passes=4)
    metrics = fitted(module, 100, tmp_path, data=data).trainer.callback_metrics
    assert low < metrics["train/kl"] < high and metrics["train/score"] > 0.12
