"""The checkpoint of a run as the expert of the next run."""

import lightning as L
import pytest
import torch

from data_modules.pendulum import PendulumDataModule
from lightning_nlf.cli.command_line import main
from lightning_nlf.experts import CheckpointExpert, CheckpointTextExpert, PolicyTextExpert
from lightning_nlf.language import generation
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.networks import GRUPolicy, HuggingFacePolicy


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


# ---- text


def save(**init):
    """Arguments for a reply to two prompts, the first of them longer."""
    return {
        "ids": torch.tensor([[2, 3, 4], [5, 0, 0]]),
        "lengths": torch.tensor([3, 1]),
        "stop": (1,),
        "max_new": 4,
    } | init


def test_a_text_expert_replies_as_its_policy_does_and_is_not_trained():
    torch.manual_seed(0)
    policy = GRUPolicy(vocabulary=6, width=8)
    expert = PolicyTextExpert(policy)
    how = save(seeds=torch.arange(4), copies=2)
    for actual, expected in zip(expert.reply(**how)[:3], generation.reply(policy, **how)[:3], strict=True):
        assert torch.equal(actual, expected)
    assert not any(p.requires_grad for p in expert.policy.parameters()) and not expert.policy.training


def test_labels_are_the_distribution_and_a_draw_from_it():
    """10,000 samples after one prefix follow the logits: 4 standard deviations of a share are at most .02."""
    torch.manual_seed(0)
    expert = PolicyTextExpert(GRUPolicy(vocabulary=6, width=8))
    obs = torch.tensor([[2, 3, 4, 5], [5, 2, 0, 0]])
    where = torch.tensor([[False, True, False, True], [True, False, False, False]])
    actions, params = expert.label(obs, where)
    torch.testing.assert_close(params["logits"], expert.policy(obs, where).logits)
    assert actions.shape == (3,)
    samples, params = expert.label(obs[:1].expand(10_000, -1), where[1:].expand(10_000, -1))
    shares = samples.bincount(minlength=6) / 10_000
    torch.testing.assert_close(shares, params["logits"][0].exp(), rtol=0, atol=0.02)


@pytest.mark.slow
def test_a_checkpoint_says_what_policy_it_holds_and_whose_ids_it_means(tmp_path):
    run = tmp_path / "outputs" / "sft"
    flags = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    main(["fit", "--config", "conf/reviews/sft.yaml", "--run_dir", str(run), *flags])
    checkpoint = run / "checkpoints" / "last.ckpt"
    expert, policy = CheckpointTextExpert(str(checkpoint)), ObjectiveModule.load_from_checkpoint(checkpoint).policy
    obs = torch.randint(3, 200, (2, 7))
    _, params = expert.label(obs, torch.ones(2, 7, dtype=torch.bool))
    torch.testing.assert_close(params["logits"].view(2, 7, -1), policy(obs).logits)
    assert expert.tokenizer_digest == policy.tokenizer_digest is not None


@pytest.mark.slow
def test_any_model_of_transformers_is_an_expert():
    config = {
        "model_type": "gpt2", "vocab_size": 6, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2,
        "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    expert = PolicyTextExpert(HuggingFacePolicy(config=config))
    tokens, log_probs, counts, _ = expert.reply(**save())
    count = int(counts[0])
    text = torch.cat([torch.tensor([2, 3, 4]), tokens[0, :count]])
    where = torch.arange(len(text) - 1)[None] >= 2
    _, params = expert.label(text[None, :-1], where)
    logits = params["logits"].gather(1, text[3:, None])[:, 0]
    torch.testing.assert_close(logits, log_probs[0, :count], rtol=0, atol=1e-4)
