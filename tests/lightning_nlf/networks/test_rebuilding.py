"""A module is rebuilt from its checkpoint alone, even if the weights of its networks came from a missing file."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from lightning_nlf.cli.command_line import main
from lightning_nlf.experts import CheckpointTextExpert
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.networks import DecoderShape, HuggingFacePolicy, LoRA, TransformerPolicy, TransformerReward
from lightning_nlf.networks.bases import bases_in
from lightning_nlf.objectives import SDPOPolicy

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
    """The checkpoint of a short run of a token task, and its module."""
    model = {"class_path": "lightning_nlf.objectives.ReinforcePolicy", "init_args": {"policy": policy}}
    data = {"prompts": 8, "replies": 4, "evaluation_prompts": 1}
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
    # it also starts other networks, without repeating their shape
    kind = {"TransformerPolicy": TransformerPolicy, "HuggingFacePolicy": HuggingFacePolicy}[network]
    torch.testing.assert_close(kind(weights=str(path)).state_dict(), module.policy.state_dict())
    if kind is TransformerPolicy:
        assert TransformerReward(weights=str(path)).decoder.shape == SHAPE


LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def base():
    """A folder named base, with the start of a run."""
    torch.manual_seed(1)
    TransformerPolicy(SHAPE).export("base")


def lora(network, weights="base"):
    return {"class_path": NETWORKS + network, "init_args": {"weights": weights, "lora": LORA}}


KINDS = ["TransformerPolicy", "HuggingFacePolicy"]
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


@needs_peft
@pytest.mark.parametrize("network", KINDS)
def test_a_checkpoint_of_lora_holds_the_additions_and_names_their_base(network, base):
    path, module = fitted(**lora(network))
    checkpoint = torch.load(path, weights_only=True)
    names = [name for name in checkpoint["state_dict"] if name.startswith("policy.")]
    assert names and all("lora_" in name for name in names)
    assert checkpoint["bases"]["policy"]["folder"] == str(Path("base").resolve())
    additions = {name: x for name, x in module.policy.named_parameters() if x.requires_grad}
    assert all(bool(x.any()) for x in additions.values())  # including those that are initially 0
    moments = checkpoint["optimizer_states"][0]["state"].values()
    assert sum(x.numel() for moment in moments for x in moment.values() if x.ndim) == 2 * sum(
        x.numel() for x in additions.values()
    )
    again = ObjectiveModule.load_from_checkpoint(path)
    torch.testing.assert_close(again.policy.state_dict(), module.policy.state_dict(), rtol=0, atol=0)
    kind = {"TransformerPolicy": TransformerPolicy, "HuggingFacePolicy": HuggingFacePolicy}[network]
    # the same with the `weights` of another run, whose checkpoints name the same base
    started = kind(weights=str(path), lora=LoRA(**LORA))
    torch.testing.assert_close(started.state_dict(), module.policy.state_dict(), rtol=0, atol=0)
    assert started.base == module.policy.base
    with pytest.raises(
        ValueError, match="only a LoRA adapter of .*base. Start the policy from the folder `huggingface` that"
    ):
        kind(weights=str(path))
    with pytest.raises(
        ValueError, match="only a LoRA adapter of .*base. Start the reward from the folder `huggingface` that"
    ):
        TransformerReward(SHAPE, weights=str(path))


@needs_peft
@pytest.mark.parametrize("network", KINDS)
def test_lora_on_a_base_that_is_gone_or_another_says_so(network, base):
    path, module = fitted(**lora(network))
    moved = Path("base").rename("kept")
    with pytest.raises(
        ValueError, match=r"last.ckpt: base: .* trained on /\S+base \(SHA-256 \w{12}….*does not exist; restore"
    ):
        CheckpointTextExpert(str(path))
    TransformerPolicy(SHAPE).export("base")  # another start policy
    with pytest.raises(ValueError, match="now holds other weights; restore that model there, or link to it"):
        CheckpointTextExpert(str(path))
    shutil.rmtree("base")
    Path("base").symlink_to(moved)
    again = CheckpointTextExpert(str(path)).policy
    torch.testing.assert_close(again.state_dict(), module.policy.state_dict(), rtol=0, atol=0)


def test_a_run_with_lora_goes_on_from_its_checkpoint_and_on_no_other_base(base, capsys):
    path, _ = fitted(**lora("TransformerPolicy"))
    options = [
        "fit",
        "--config",
        "run.yaml",
        *QUIET,
        "--run_dir",
        "run",
        "--ckpt_path",
        "last",
        "--trainer.max_epochs",
        "2",
    ]
    TransformerPolicy(SHAPE).export("other")
    with pytest.raises(SystemExit) as ending:
        main([*options, "--model.policy.weights", "other"])
    assert ending.value.code == 2
    assert "the checkpoint's LoRA adapter was trained on" in capsys.readouterr().err
    cli = main(options)
    assert cli.trainer.current_epoch == 2
    state_dict = torch.load(path, weights_only=True)["state_dict"]
    for name, x in state_dict.items():
        assert torch.equal(cli.model.state_dict()[name], x), name


@needs_peft
def test_a_checkpoint_of_lora_that_holds_its_base_as_earlier_ones_do_needs_it_no_more(base):
    path, module = fitted(**lora("HuggingFacePolicy"))
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["bases"]
    checkpoint["state_dict"] = module.state_dict()
    torch.save(checkpoint, "whole.ckpt")
    shutil.rmtree("base")
    again = ObjectiveModule.load_from_checkpoint("whole.ckpt")
    torch.testing.assert_close(again.policy.state_dict(), module.policy.state_dict(), rtol=0, atol=0)
    started = HuggingFacePolicy(weights="whole.ckpt", lora=LoRA(**LORA))
    torch.testing.assert_close(started.state_dict(), module.policy.state_dict(), rtol=0, atol=0)


def test_lora_on_a_checkpoint_of_everything_keeps_everything(base):
    """Without a folder there is no base to name, so that its checkpoints have all weights."""
    path, _ = fitted(class_path=NETWORKS + "TransformerPolicy", init_args={"weights": "base"})
    copied = shutil.copy(path, "sft.ckpt")
    shutil.rmtree("run")
    path, module = fitted(**lora("TransformerPolicy", str(copied)))
    Path(copied).unlink()
    again = ObjectiveModule.load_from_checkpoint(path)
    torch.testing.assert_close(again.policy.state_dict(), module.policy.state_dict(), rtol=0, atol=0)


def test_what_a_damaged_checkpoint_names_as_base_is_refused():
    with pytest.raises(ValueError, match="^bases: the checkpoint is damaged: its entry for the base"):
        bases_in({"bases": {"policy": {"weights": 3, "folder": "", "sha256": ""}}})


def test_the_average_of_a_policy_with_lora_is_held_without_its_base_too(base):
    """SDPO's teacher is another copy of the same base, with additions of its own."""
    policy = TransformerPolicy(weights="base", lora=LoRA(**LORA))
    module = SDPOPolicy(policy=policy, teacher_rate=0.5)
    torch.nn.init.ones_(policy.decoder.blocks[0].qkv.lora_B["q_proj"])
    module.advance()
    state = module.state_dict()
    checkpoint = {"state_dict": dict(state)}
    module.on_save_checkpoint(checkpoint)
    names = [name for name in checkpoint["state_dict"] if ".decoder." in name]
    assert {name.split(".decoder")[0] for name in names} == {"policy", "averages.policy"} == checkpoint["bases"].keys()
    assert all("lora_" in name for name in names)
    again = SDPOPolicy(policy=TransformerPolicy(weights="base", lora=LoRA(**LORA)), teacher_rate=0.5)
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"])
    torch.testing.assert_close(again.state_dict(), state, rtol=0, atol=0)
    assert float(again.teacher.decoder.blocks[0].qkv.lora_B["q_proj"].mean()) == 0.5
