"""Global state after a fit, and side effects of a label buffer."""

import lightning as L
import torch

from data_modules.label_buffer import LabelBuffer
from data_modules.pendulum import PendulumDataModule
from data_modules.pendulum.experts import LQRExpert
from lightning_nlf.networks import GaussianPolicy, MLPValue
from lightning_nlf.objectives import JointAgent


def fitted(weight, buffer, epochs=3):
    torch.manual_seed(0)
    module = JointAgent(
        policy=GaussianPolicy(4, 1),
        value=MLPValue(4),
        imitation_weight=weight,
        optimizer=lambda groups: torch.optim.Adam(groups, lr=0.01),
    )
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    data = PendulumDataModule(
        episodes=3, horizon=30, evaluation_episodes=1, expert=LQRExpert(), label_share=1.0, label_buffer=buffer
    )
    trainer.fit(module, data)
    return module


def test_gradients_are_on_and_the_generator_goes_on_after_a_fit():
    module = fitted(1.0, None)
    assert torch.is_grad_enabled()
    state = torch.get_rng_state()
    module.trainer.validate(module, module.trainer.datamodule, verbose=False)
    assert torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), state)


def test_joint_with_weight_zero_is_reinforce_with_a_label_buffer_too():
    plain, buffered = fitted(0.0, None), fitted(0.0, LabelBuffer(updates=10, rows=16))
    for actual, expected in zip(buffered.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_explained_variance_is_that_of_the_collection():
    """An untrained critic explains nothing; ten label batches without a learner's step must not change that."""
    module = fitted(1.0, LabelBuffer(updates=10, rows=16), epochs=1)
    assert module.trainer.callback_metrics["train/explained_variance"] < 0.5
