"""A damaged checkpoint is refused in one line. A checkpoint of an earlier version loads and can be resumed."""

import sys
from pathlib import Path

import pytest
import torch

from lightning_nlf.checkpoint_content import check_run, check_training
from lightning_nlf.checkpoint_io import RunCheckpointIO, SafeCheckpointIO
from lightning_nlf.cli.command_line import main
from lightning_nlf.modules import ObjectiveModule

ROOT = Path(__file__).parents[2]
EARLIER = Path(__file__).parent / "checkpoints" / "injection.ckpt"  # from conf/injection.yaml at commit 1c5b0d2
CONFIG = ["--config", str(ROOT / "conf" / "injection.yaml"), "--config", str(ROOT / "conf" / "overlays" / "debug.yaml")]
SAME = ["--model.policy.hidden", "[2]", "--data.label_buffer.rows", "4", "--run_dir", "run"]
SHORT = ["--data.evaluation_episodes", "1", "--data.horizon", "20"]
QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def content():
    return torch.load(EARLIER, weights_only=True)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_NLF_RUN_DIR", "")


def refusal(capsys, stage, content):
    torch.save(content, "spoilt.ckpt")
    with pytest.raises(SystemExit) as ending:
        main([stage, *CONFIG, *SAME, *SHORT, *QUIET, "--ckpt_path", "spoilt.ckpt"])
    message = capsys.readouterr().err
    assert ending.value.code == 2 and message.count("\n") == 1, message
    return message


def test_a_checkpoint_of_an_earlier_version_loads_and_goes_on(content):
    module = ObjectiveModule.load_from_checkpoint(EARLIER)
    assert torch.equal(module.policy.log_std, content["state_dict"]["policy.log_std"])
    cli = main(["fit", *CONFIG, *SAME, *SHORT, *QUIET, "--ckpt_path", str(EARLIER)])
    assert cli.datamodule.counters["iteration"] == cli.trainer.current_epoch == 2
    assert cli.trainer.optimizers[0].state_dict()["param_groups"][0]["lr"] == 0.02


def test_no_flipped_byte_is_read_as_other_content(tmp_path, content):
    whole, refused = EARLIER.read_bytes(), 0
    for position in range(0, len(whole), 41):
        (tmp_path / "flipped.ckpt").write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :]
        )
        try:
            read = SafeCheckpointIO().load_checkpoint("flipped.ckpt")
        except ValueError as error:
            assert str(error).startswith("flipped.ckpt is ") and "\n" not in str(error)
            refused += 1
        else:
            assert flat(read) == flat(content)
    assert refused > len(range(0, len(whole), 41)) / 2  # padding and dates are not content


def flat(value):
    """Content with tensors as lists, because tensors compare elementwise."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {key: flat(entry) for key, entry in value.items()}
    return [flat(entry) for entry in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    "spoilt, why",
    [
        ({}, "is not a checkpoint of a module"),
        ({"state_dict": None}, "is not a checkpoint of a module"),
        ({"state_dict": {"policy.log_std": 3}}, "state_dict: policy.log_std must be a tensor, got int"),
        ({"state_dict": {}, "hyper_parameters": [1]}, "hyper_parameters must be a mapping of names to values"),
        ({"state_dict": {}, "hyper_parameters": {"_class_path": 3}}, "_class_path must be a text, got int"),
        ({"state_dict": {}}, "does not contain the arguments of its module"),
    ],
)
def test_a_module_is_built_from_a_whole_checkpoint_only(spoilt, why):
    torch.save(spoilt, "spoilt.ckpt")
    with pytest.raises(ValueError, match=rf"^spoilt\.ckpt[^\n]*{why}[^\n]*$"):
        ObjectiveModule.load_from_checkpoint("spoilt.ckpt")


def test_values_that_build_no_module_are_named(content):
    for change, why in (
        ({"gamma": "high"}, "gamma: Expected a discount (a number from 0 to 1)"),
        ({"gama": 0.9}, "Option 'gama' is not accepted"),
        ({"_class_path": "lightning_nlf.objectives.Gone"}, "module 'lightning_nlf.objectives' has no attribute 'Gone'"),
    ):
        torch.save(content | {"hyper_parameters": content["hyper_parameters"] | change}, "spoilt.ckpt")
        with pytest.raises(ValueError) as refused:
            ObjectiveModule.load_from_checkpoint("spoilt.ckpt")
        assert str(refused.value) == f"spoilt.ckpt: {why}"
    wrong_state = content["state_dict"] | {"policy.log_std": torch.zeros(7)}
    torch.save(content | {"state_dict": wrong_state}, "spoilt.ckpt")
    with pytest.raises(ValueError, match=r"^spoilt\.ckpt: its weights do not fit: size mismatch for policy\.log_std"):
        ObjectiveModule.load_from_checkpoint("spoilt.ckpt")


@pytest.mark.parametrize("key", ["pytorch-lightning_version", "epoch", "global_step", "state_dict", "loops"])
def test_every_stage_needs_these_parts(content, key):
    check_run(content, "a.ckpt")
    for spoilt in ({name: x for name, x in content.items() if name != key}, content | {key: None}):
        torch.save(spoilt, "a.ckpt")
        with pytest.raises(ValueError, match=rf"^a\.ckpt.*{key}"):
            RunCheckpointIO().load_checkpoint("a.ckpt")


@pytest.mark.parametrize("key", ["optimizer_states", "lr_schedulers", "callbacks"])
def test_training_needs_these_parts_too(content, key):
    check_training(content, None)
    for spoilt in ({name: x for name, x in content.items() if name != key}, content | {key: 3}, content | {key: ["a"]}):
        with pytest.raises(ValueError, match=f"^ckpt_path: (the checkpoint has no optimizer state \\()?{key} is "):
            check_training(spoilt, None)


def test_training_does_not_go_on_without_the_state_of_its_data(capsys, content):
    message = refusal(capsys, "fit", {key: x for key, x in content.items() if key != "PendulumDataModule"})
    assert "ckpt_path: the checkpoint has no state of PendulumDataModule" in message


@pytest.mark.parametrize(
    "stage, change, why",
    [
        ("test", None, "spoilt.ckpt is not a checkpoint of a module"),
        ("fit", {"PendulumDataModule": {"counters": {}}}, "KeyError: 'ranks'"),
        ("fit", {"optimizer_states": [{"state": 1}]}, "ckpt_path: the checkpoint is damaged"),
    ],
)
def test_a_state_that_cannot_be_restored_is_one_line(capsys, content, stage, change, why):
    assert why in refusal(capsys, stage, {"weights": 1} if change is None else content | change)


def test_nothing_that_a_checkpoint_names_is_run_by_ckpt_path(tmp_path, monkeypatch, content):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger.py").write_text("open('ran', 'w')\nclass Thing: ...\n")
    bad = {"class_path": "os.system", "init_args": {"command": "touch ran"}}
    places = {"optimizer": bad, "lr_scheduler": "stranger.Thing", "policy": bad, "imitation_weight": bad}
    arguments = content["hyper_parameters"] | places | {"_class_path": "stranger.Thing"}
    torch.save(content | {"hyper_parameters": arguments}, "poisoned.ckpt")
    for stage in ("validate", "fit"):
        main([stage, *CONFIG, *SAME, *SHORT, *QUIET, "--ckpt_path", "poisoned.ckpt"])
        assert not Path("ran").exists() and "stranger" not in sys.modules
