"""A run's checkpoint as the next run's expert."""

import lightning as L
import pytest
import torch

from data_modules.pendulum import PendulumDataModule
from lightning_nlf.cli.command_line import main
from lightning_nlf.experts import CheckpointExpert
from lightning_nlf.modules import ObjectiveModule


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    run = tmp_path_factory.mktemp("outputs") / "run"
    flags = ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "1", "--data.evaluation_episodes", "1"]
    main(["fit", "--config", "conf/injection.yaml", "--run_dir", str(run), *flags])
    return run / "checkpoints" / "last.ckpt"


@pytest.mark.slow
def test_it_acts_as_the_policy_it_was(checkpoint):
    expert, policy = CheckpointExpert(str(checkpoint)), ObjectiveModule.load_from_checkpoint(checkpoint).policy
    obs = torch.randn(7, 4)
    actions, log_probs, params = expert.act(obs)
    torch.testing.assert_close(params["mean"], policy(obs).mean)
    torch.testing.assert_close(log_probs, policy(obs).log_prob(actions))


@pytest.mark.slow
def test_it_labels_and_takes_over_like_any_expert(checkpoint):
    class Learner:
        def act(self, obs, state=None, deterministic=False):
            return torch.zeros(len(obs), 1), torch.zeros(len(obs)), None, None

    data = PendulumDataModule(episodes=2, expert=CheckpointExpert(str(checkpoint)), label_share=1.0)
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch = data.collect(Learner(), data._rng(0))
    torch.testing.assert_close(batch.expert_params["mean"][batch.mask], data.expert.policy(batch.obs, batch.mask).mean)
    assert torch.equal(batch.expert_mask, batch.mask) and data.counters["labels"] == batch.mask.sum()


def test_a_checkpoint_that_is_not_there_is_refused():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CheckpointExpert("nowhere.ckpt")
