"""The reward model of a run as the scorer of the next run: it gives the rewards of the module itself."""

from dataclasses import replace

import pytest
import torch

from data_modules.offline import save_batch
from lightning_nlf import scorers
from lightning_nlf.batch import Batch
from lightning_nlf.cli.command_line import main
from lightning_nlf.maths.steps import last_valid
from lightning_nlf.rewards.reward_module import RewardModule
from lightning_nlf.scorers import CheckpointReward

END = 1  # the token that ends a step


def rows(count=6, seed=0):
    """A prompt token, then a reply of three to six tokens: `END` and random tokens; rows come in pairs."""
    ids = torch.randint(1, 5, (count, 7), generator=torch.Generator().manual_seed(seed))
    lengths = 3 + torch.arange(count) % 4
    valid = torch.arange(6) < lengths[:, None]
    return Batch(
        obs=ids[:, :-1],
        actions=ids[:, 1:],
        valid=valid,
        mask=valid,
        rewards=torch.zeros(count, 6),
        final_obs=ids.gather(1, lengths[:, None])[:, 0],
        terminated=torch.ones(count, dtype=torch.bool),
        group=torch.arange(count) // 2,
        rank=torch.arange(count) % 2,
        extra={"step_ends": valid & (ids[:, 1:] == END)},
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints of an outcome model and of a process model, as the command line writes them."""
    folder = tmp_path_factory.mktemp("outputs")
    save_batch(rows(16), folder / "rows.pt")
    losses = {}
    for family in ("BradleyTerryReward", "ProcessReward"):
        yaml = folder / f"{family}.yaml"
        yaml.write_text(
            f"""
seed_everything: 0
trainer: {{max_epochs: 1, accelerator: cpu, logger: false, enable_progress_bar: false}}
model:
  class_path: lightning_nlf.objectives.{family}
  init_args:
    reward: {{class_path: lightning_nlf.networks.GRUReward, init_args: {{vocabulary: 5, width: 8}}}}
data: {{class_path: data_modules.offline.OfflineDataModule, init_args: {{path: {folder / "rows.pt"}}}}}
"""
        )
        main(["fit", "--config", str(yaml), "--run_dir", str(folder / family)])
        losses[family] = str(folder / family / "checkpoints" / "last.ckpt")
    return losses


@pytest.fixture
def outcome(checkpoints):
    return CheckpointReward(checkpoints["BradleyTerryReward"])


def test_an_outcome_is_paid_on_the_last_step_as_the_module_says_it(checkpoints, outcome):
    batch = rows()
    module = RewardModule.load_from_checkpoint(checkpoints["BradleyTerryReward"]).eval()
    final = last_valid(batch.valid)
    values = module.evaluate(module.prepare(batch)).values
    assert module.gain != 1  # with normalisation
    rewards = outcome.score(batch)
    torch.testing.assert_close(rewards, torch.where(final, module.gain * values + module.bias, 0))
    assert rewards[final].unique().numel() > 1 and not rewards[~final].any()
    assert not rewards.requires_grad and not any(p.requires_grad for p in outcome.module.parameters())


def test_chunks_and_longer_neighbours_change_nothing(outcome, monkeypatch):
    batch = rows(12)
    whole = outcome.score(batch)
    monkeypatch.setattr(RewardModule, "CHUNK", 5)
    torch.testing.assert_close(outcome.score(batch), whole)
    short = batch[batch.valid.sum(1) == 3]
    torch.testing.assert_close(outcome.score(short).sum(1), whole.sum(1)[batch.valid.sum(1) == 3])


def test_a_row_that_nobody_decided_in_is_paid_nothing(outcome):
    batch = rows()
    batch.valid[2] = False
    assert not outcome.score(batch)[2].any()


def test_steps_are_paid_where_they_end(checkpoints):
    """Step ends from the token or from the batch are the same; a reply without a step end is one step."""
    batch = rows()
    no_end = ~batch.extra["step_ends"].any(1)
    assert no_end.any() and not no_end.all()
    module = RewardModule.load_from_checkpoint(checkpoints["ProcessReward"])
    ends = torch.where(no_end[:, None], last_valid(batch.valid), batch.extra["step_ends"])
    by_token = CheckpointReward(checkpoints["ProcessReward"], step_end_token=END).score(replace(batch, extra={}))
    torch.testing.assert_close(by_token, torch.where(ends, module.read(batch, ends).sigmoid(), 0).detach())
    assert torch.equal(CheckpointReward(checkpoints["ProcessReward"]).score(batch), by_token)
    with pytest.raises(ValueError, match="^step_end_token"):
        CheckpointReward(checkpoints["ProcessReward"]).score(replace(batch, extra={}))


@pytest.mark.parametrize("aggregate", ["min", "product", "last"])
def test_steps_become_one_number_on_the_last_step(checkpoints, aggregate):
    batch = rows()
    dense = CheckpointReward(checkpoints["ProcessReward"]).score(batch)
    step_rewards = CheckpointReward(checkpoints["ProcessReward"], aggregate).score(batch)
    final = last_valid(batch.valid)
    assert not step_rewards[~final].any()
    for row in range(len(batch)):
        steps = dense[row][dense[row] > 0].tolist()
        expected = {"min": min(steps), "product": torch.tensor(steps).prod().item(), "last": steps[-1]}[aggregate]
        assert step_rewards[row][final[row]].item() == pytest.approx(expected)


def test_aggregates_by_hand():
    """Steps of .5, .25 and .8 with other tokens between: minimum .25, product .1, last .8."""
    rewards = torch.tensor([[0.5, 9.0, 0.25, 0.8, -1.0]])
    ends = torch.tensor([[True, False, True, True, False]])
    losses = {name: of(rewards, ends).item() for name, of in scorers.AGGREGATES.items()}
    assert losses == pytest.approx({"min": 0.25, "product": 0.1, "last": 0.8})


@pytest.mark.parametrize(("knob", "value"), [("aggregate", "min"), ("step_end_token", 1)])
def test_a_knob_of_steps_is_refused_for_a_model_of_replies(checkpoints, knob, value):
    with pytest.raises(ValueError, match=f"^{knob}.*whole replies"):
        CheckpointReward(checkpoints["BradleyTerryReward"], **{knob: value})


def test_the_digest_of_the_tokenizer_comes_with_it(checkpoints, outcome, tmp_path):
    assert outcome.tokenizer_digest is None
    checkpoint = torch.load(checkpoints["BradleyTerryReward"], weights_only=True)
    torch.save(checkpoint | {"tokenizer_digest": "abc"}, tmp_path / "named.ckpt")
    assert CheckpointReward(str(tmp_path / "named.ckpt")).tokenizer_digest == "abc"


def test_a_checkpoint_that_is_not_there_is_refused():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CheckpointReward("nowhere.ckpt")
