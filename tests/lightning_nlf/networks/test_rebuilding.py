"""A module whose networks came from weights that are gone is rebuilt from its checkpoint alone."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_nlf.cli.command_line import main
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.networks import DecoderShape, HuggingFacePolicy, TransformerPolicy, TransformerReward

ROOT = Path(__file__).parents[3]
NETWORKS = "lightning_nlf.networks."
SHAPE = DecoderShape(vocabulary=12, layers=1, heads=2, width=16, context=32, family="llama", kv_heads=1)
QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_NLF_RUN_DIR", "")
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])


def fitted(**policy):
    """The checkpoint of a short run of a token task, and the module it is of."""
    model = {"class_path": "lightning_nlf.objectives.ReinforcePolicy", "init_args": {"policy": policy}}
    data = {"prompts": 2, "replies": 2, "evaluation_prompts": 1}
    config = {
        "trainer": {"accelerator": "cpu", "max_epochs": 1},
        "model": model,
        "data": {"class_path": "data_modules.text.TokenTaskDataModule", "init_args": data},
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))
    cli = main(["fit", "--config", "run.yaml", *QUIET, "--run_dir", "run"])
    return Path("run/checkpoints/last.ckpt"), cli.model


@pytest.mark.parametrize("network", ["TransformerPolicy", "HuggingFacePolicy"])
def test_a_policy_that_came_in_hugging_face_layout(network):
    if network == "HuggingFacePolicy":
        pytest.importorskip("transformers")
    TransformerPolicy(SHAPE).export("base")
    path, module = fitted(class_path=NETWORKS + network, init_args={"weights": "base", "temperature": 0.5})
    shutil.rmtree("base")
    again = ObjectiveModule.load_from_checkpoint(path).eval()
    assert again.policy.temperature == 0.5
    ids = torch.randint(12, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(again.policy(ids).logits, module.eval().policy(ids).logits)
    # and it starts others, without their shape being said again
    kind = {"TransformerPolicy": TransformerPolicy, "HuggingFacePolicy": HuggingFacePolicy}[network]
    torch.testing.assert_close(kind(weights=str(path)).state_dict(), module.policy.state_dict())
    if kind is TransformerPolicy:
        assert TransformerReward(weights=str(path)).decoder.shape == SHAPE


def test_lora_on_a_base_that_is_gone():
    pytest.importorskip("peft")
    TransformerPolicy(SHAPE).export("base")
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    path, module = fitted(class_path=NETWORKS + "HuggingFacePolicy", init_args={"weights": "base", "lora": lora})
    shutil.rmtree("base")
    again = ObjectiveModule.load_from_checkpoint(path).eval()
    torch.testing.assert_close(again.policy.state_dict(), module.policy.state_dict())
    assert any("lora_" in name for name in again.policy.state_dict())
