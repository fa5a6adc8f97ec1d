"""Value and reward networks on models of transformers: inputs, initial weights, and use as a scorer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from data_modules.offline import save_batch
from lightning_nlf.batch import Batch
from lightning_nlf.cli.command_line import main
from lightning_nlf.maths.steps import last_valid
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.networks import HuggingFacePolicy, HuggingFaceReward, HuggingFaceValue, LoRA
from lightning_nlf.scorers import CheckpointReward

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

NONE = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
CONFIG = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 8} | NONE
SPEC = "lightning_nlf.networks.HuggingFaceReward"


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder with a causal model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_NLF_RUN_DIR", "")
    torch.manual_seed(0)
    HuggingFacePolicy(config=CONFIG).export("base")
    return "base"


def ranked(groups=24, replies=4):
    """Prompts of two tokens, replies of four. The teacher counts the 2s; equal counts are a tie."""
    ids = torch.randint(1, 8, (groups * replies, 6), generator=torch.Generator().manual_seed(0))
    valid = (torch.arange(5) >= 1).expand(len(ids), -1)
    group = torch.arange(groups).repeat_interleave(replies)
    score = (ids[:, 2:] == 2).sum(1)
    rank = ((group[:, None] == group) & (score > score[:, None])).sum(1)
    rows = Batch(obs=ids[:, :-1], actions=ids[:, 1:], valid=valid, mask=valid, group=group, rank=rank)
    return replace(rows, final_obs=ids[:, -1], terminated=torch.ones(len(ids), dtype=torch.bool))


@pytest.mark.parametrize("kind", [HuggingFaceReward, HuggingFaceValue])
@torch.no_grad()
def test_the_head_reads_the_last_states_of_the_folder_s_model(kind, base):
    network, ids = kind(weights=base), torch.randint(8, (3, 6))
    model = transformers.AutoModel.from_pretrained(base)
    network.head.weight.normal_()
    expected = network.head(model(ids).last_hidden_state)[..., 0]
    torch.testing.assert_close(network(ids), expected, atol=1e-4, rtol=0)
    where = torch.zeros(3, 6, dtype=torch.bool)
    where[0, 3] = where[2, 1] = where[2, 4] = True
    padded = torch.where(where.flip(1).cumsum(1).flip(1) > 0, ids, 0)  # nothing after the last token is read
    torch.testing.assert_close(network(padded, where), expected[where], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="33 tokens is longer than the model's context of 32"):
        network(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match="the (reward|value)'s context"):
        network.check_length(34)


def test_a_value_begins_at_0_and_a_reward_does_not(base):
    ids = torch.randint(8, (3, 6))
    assert not HuggingFaceValue(weights=base)(ids).any()
    assert HuggingFaceReward(weights=base)(ids).std() > 0.1


def test_lora_trains_additions_and_the_head_alone(base):
    network = HuggingFaceReward(weights=base, lora=LoRA(r=2))
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert any("lora_" in name for name in trained) and "head.weight" in trained
    assert all("lora_" in name or name.startswith("head.") for name in trained)


@pytest.mark.parametrize(
    ("family", "knobs"), [("BradleyTerryReward", {}), ("RaoKupperReward", {"lora": {"r": 4, "alpha": 8}})]
)
def test_it_learns_from_rankings_and_its_checkpoint_pays_the_same(family, knobs, base):
    """Works without the original folder. With LoRA that folder is the base, and must exist."""
    save_batch(ranked(), Path("rows.pt"))
    how = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.03}}
    reward = {"class_path": SPEC, "init_args": {"weights": base} | knobs}
    model = {
        "class_path": f"lightning_nlf.objectives.{family}",
        "init_args": {"reward": reward, "optimizer": how},
    }
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    data = {"class_path": "data_modules.offline.OfflineDataModule", "init_args": {"path": "rows.pt"}}
    config = {"seed_everything": 0, "trainer": quiet | {"max_epochs": 40}, "model": model, "data": data}
    Path("run.yaml").write_text(yaml.safe_dump(config))
    module = main(["fit", "--config", "run.yaml", "--run_dir", "run"]).model.eval()
    moved = Path(base).rename("kept")
    if knobs:
        assert not [name for name in torch.load("run/checkpoints/last.ckpt")["state_dict"] if "base_layer" in name]
        with pytest.raises(ValueError, match="base: the LoRA adapter was trained on .* which does not exist"):
            CheckpointReward("run/checkpoints/last.ckpt")
        moved.rename(base)
    batch = ranked()
    rewards, ends = CheckpointReward("run/checkpoints/last.ckpt").score(batch), last_valid(batch.valid)
    torch.testing.assert_close(rewards, module.judge(batch, ends), atol=1e-4, rtol=0)
    totals, twos = rewards.sum(1), (batch.actions[:, 1:] == 2).sum(1)
    assert torch.corrcoef(torch.stack([totals, twos.float()]))[0, 1] > 0.8


def test_it_starts_from_the_checkpoint_of_a_policy_without_lora(base):
    """From the policy's body, with a config from the checkpoint."""
    policy = {"class_path": "lightning_nlf.networks.HuggingFacePolicy", "init_args": {"weights": base}}
    model = {"class_path": "lightning_nlf.objectives.ReinforcePolicy", "init_args": {"policy": policy}}
    data = {"class_path": "data_modules.text.TokenTaskDataModule"}
    data["init_args"] = {"vocabulary": 8, "prompts": 2, "replies": 2, "evaluation_prompts": 1}
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    Path("run.yaml").write_text(yaml.safe_dump({"trainer": quiet | {"max_epochs": 1}, "model": model, "data": data}))
    main(["fit", "--config", "run.yaml", "--run_dir", "run"])
    path = "run/checkpoints/last.ckpt"
    body = ObjectiveModule.load_from_checkpoint(path).policy.bare.base_model.state_dict()
    torch.testing.assert_close(HuggingFaceReward(weights=path).model.state_dict(), body)
