"""The preflight checks refuse a run before the weights of its networks are read."""

import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from lightning_nlf.callbacks.disk import checkpoint_bytes, export_bytes  # noqa: E402
from lightning_nlf.cli import preflight  # noqa: E402
from lightning_nlf.cli.command_line import main  # noqa: E402
from lightning_nlf.language import hf_layout, hf_model  # noqa: E402
from lightning_nlf.networks import HuggingFacePolicy, HuggingFaceReward, LoRA, TransformerPolicy, bases  # noqa: E402
from tests.documents import ROOT  # noqa: E402
from tests.my_folder import my_folder  # noqa: E402

QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
PARAMETERS = 3_000_000  # of the model, about
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    shutil.copytree(ROOT / "conf", folder / "conf")
    my_folder(folder)
    return folder


@pytest.fixture
def place(team, tmp_path, monkeypatch):
    """A folder with `conf/` and with a user's files in `my/`."""
    shutil.copytree(team, tmp_path, dirs_exist_ok=True, ignore=lambda folder, names: {"model"} & set(names))
    (tmp_path / "my" / "model").symlink_to(team / "my" / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unread(monkeypatch):
    """Reading any weights fails the test."""

    def read(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(hf_layout, "load", read)
    monkeypatch.setattr(hf_model, "_load", read)
    monkeypatch.setattr(bases, "_file_digest", read)


def refused(capsys, *words):
    with pytest.raises(SystemExit) as ending:
        main([*words, *QUIET])
    assert ending.value.code == 2
    assert not Path("outputs").exists() or not list(Path("outputs").iterdir())
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("error: ")


def add(path, record):
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def test_a_line_of_feedback(place, unread, capsys):
    add("my/feedback.jsonl", {"prompt": "Is it?", "responses": ["Yes."], "score": 7})
    assert "my/feedback.jsonl:81" in refused(capsys, "fit", "--config", "conf/chat/sft.yaml")


def test_a_row_that_is_longer_than_the_context(place, unread, capsys):
    add("my/feedback.jsonl", {"prompt": "Is it?", "expected": "Yes. " * 500})
    message = refused(capsys, "fit", "--config", "conf/chat/sft.yaml")
    assert message.startswith("my/feedback.jsonl:81: ") and "are more than the context of 2049" in message


def test_a_prompt_that_leaves_no_room_for_a_reply(place, unread, capsys):
    add("my/prompts.jsonl", {"id": "long", "prompt": "Is it? " * 900})
    message = refused(capsys, "predict", "--config", "conf/chat/sample.yaml")
    assert message.startswith("train case 'long': ") and "exceed the 2049 tokens of a row (context)" in message


def test_a_prompt_without_what_the_judge_is_told(place, unread, capsys):
    add("my/prompts.jsonl", {"id": "bare", "prompt": "Is it?"})
    endpoint = {"url": "http://localhost:1/v1", "model": "judge"}
    question = {"template": "{prompt} {reference} {response}"}
    question = {"class_path": "data_modules.feedback.providers.ScoreQuestion", "init_args": question}
    judge = {"class_path": "data_modules.feedback.providers.JudgeReward"}
    judge["init_args"] = {"endpoint": endpoint, "question": question}
    Path("paid.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"reward": judge}}}))
    message = refused(capsys, "fit", "--config", "conf/chat/ppo.yaml", "--config", "paid.yaml")
    assert "reference" in message and "bare" in message


@pytest.mark.parametrize("stage, name", [("predict", "sample"), ("fit", "sdpo")])
def test_a_line_of_prompts(place, unread, capsys, stage, name):
    add("my/prompts.jsonl", {"question": "Is it?"})
    assert "my/prompts.jsonl:41" in refused(capsys, stage, "--config", f"conf/chat/{name}.yaml")


def test_a_monitor_that_no_validation_logs(place, unread, capsys):
    best = {"class_path": "lightning_nlf.callbacks.BestCheckpoint", "init_args": {"monitor": "val/nothing"}}
    Path("best.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [best]}}))
    words = ["fit", "--config", "conf/chat/sft.yaml", "--config", "best.yaml", "--data.evaluation_prompts", "0"]
    assert refused(capsys, *words).startswith("BestCheckpoint.monitor: the validation does not log val/nothing")


@pytest.mark.parametrize(
    "kind", ["lightning_nlf.callbacks.BestCheckpoint", "lightning.pytorch.callbacks.EarlyStopping"]
)
def test_a_monitor_that_is_nearly_one(place, unread, capsys, kind):
    stop = {"class_path": kind, "init_args": {"monitor": "val/imitaton"}}
    Path("stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stop]}}))
    message = refused(capsys, "fit", "--config", "conf/chat/sft.yaml", "--config", "stop.yaml")
    assert message.endswith("monitor: the validation does not log val/imitaton. Did you mean 'val/imitation'?")


def test_another_monitor_of_early_stopping_is_told_in_one_line(place, capsys):
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/beauty"}}
    Path("stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stop]}}))
    with pytest.raises(SystemExit) as ending:
        main(["fit", "--config", "conf/chat/sft.yaml", "--config", "stop.yaml", "--trainer.max_epochs", "1", *QUIET])
    assert ending.value.code == 2
    assert "error: EarlyStopping.monitor: Early stopping conditioned on metric `val/beauty`" in capsys.readouterr().err


def test_a_disk_without_room(place, unread, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, PARAMETERS))
    assert refused(capsys, "fit", "--config", "conf/chat/sft.yaml").startswith("run_dir: not enough disk space")


def test_too_little_memory(place, unread, capsys, monkeypatch):
    """Enough memory for the weights (4 bytes a parameter), but not for gradients and moments (12)."""
    memory = SimpleNamespace(total=8 * PARAMETERS, available=8 * PARAMETERS)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=0))
    words = ["fit", "--config", "conf/chat/sft.yaml", "--model.policy.lora", "null"]
    message = refused(capsys, *words)
    assert message.startswith("memory: training needs about ") and " GiB more (0.0 for weights, " in message


def test_a_model_that_is_not_there(place, unread, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused(capsys, "fit", "--config", "conf/chat/sft.yaml", "--model.policy.weights", "my/modle")
    assert message.startswith("--model.policy.weights: my/modle is not a file or folder, and not on the hub: ")


def test_memory_that_others_have_is_a_warning_and_comes_once(place, monkeypatch, recwarn):
    memory = SimpleNamespace(total=2**40, available=8 * PARAMETERS)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    main(
        ["fit", "--config", "conf/chat/sft.yaml", "--model.policy.lora", "null", "--trainer.fast_dev_run", "1", *QUIET]
    )
    assert len([warning for warning in recwarn if str(warning.message).startswith("memory: ")]) == 1


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
@pytest.mark.parametrize("network", [TransformerPolicy, HuggingFacePolicy, HuggingFaceReward])
def test_a_sketch_has_the_sizes_of_the_network(team, network, lora):
    folder = str(team / "my" / "model")
    real, sketch = network(weights=folder, lora=lora), network.sketch(weights=folder, lora=lora)
    for name, x in real.named_parameters():
        like = dict(sketch.named_parameters())[name]
        assert like.is_meta and (like.shape, like.requires_grad) == (x.shape, x.requires_grad)
    assert len(list(real.parameters())) == len(list(sketch.parameters()))
    assert list(sketch.base_weights()) == list(real.base_weights())
    for name in ("vocabulary", "context", "start_dtype", "kept_per_token"):
        assert getattr(sketch, name) == getattr(real, name)


def test_a_sketch_needs_the_room_of_the_model(place):
    """A sketch gives the same estimates of disk space as the model."""
    run = main(["fit", "--config", "conf/chat/dpo.yaml", *QUIET], run=False)
    sketch = preflight.sketch(run.options.model.as_dict())
    for estimate in (checkpoint_bytes, export_bytes):
        assert estimate(run.trainer, sketch) == estimate(run.trainer, run.model) > 0


@pytest.mark.parametrize("name", ["sft", "ilf"])
def test_looking_ahead_changes_nothing(place, monkeypatch, name):
    """With and without the preflight checks, training gives the same LoRA weights, bit for bit."""
    few = ["--trainer.max_epochs", "1", "--data.evaluation_prompts", "2"]
    few += ["--data.prompts", "2", "--data.max_new", "8"] if name == "ilf" else []
    for run in ("ahead", "not"):
        if run == "not":
            monkeypatch.setattr(preflight, "look_ahead", lambda *run: False)
        main(["fit", "--config", f"conf/chat/{name}.yaml", "--run_dir", run, *few, *QUIET])
    ahead, without = (load_file(f"{run}/adapter/adapter_model.safetensors") for run in ("ahead", "not"))
    assert ahead.keys() == without.keys()
    assert all(torch.equal(ahead[key], without[key]) for key in ahead)


MINE = """
from data_modules.feedback import FeedbackDataModule
from lightning_nlf.networks import TransformerPolicy

class Mine(TransformerPolicy):
    def __init__(self, weights: str, scale: float = 1.0):
        super().__init__(weights=weights)

class Looks(TransformerPolicy):
    def __init__(self, weights: str, **how):
        super().__init__(weights=weights, **how)
        self.norm = float(self.decoder.embed.weight.norm())

class Fetched(FeedbackDataModule):
    def prepare_data(self):
        with open("my/feedback.jsonl") as file, open("my/fetched.jsonl", "w") as copy:
            copy.write(file.read())
"""


@pytest.mark.parametrize("name", ["Mine", "Looks", "Fetched"])
def test_classes_of_a_user_that_cannot_be_looked_at_ahead_train_as_ever(place, monkeypatch, name):
    Path("mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    config = yaml.safe_load(Path("conf/chat/sft.yaml").read_text())
    if name == "Fetched":
        config["data"]["class_path"] = "mine.Fetched"
        config["data"]["init_args"]["path"] = "my/fetched.jsonl"
    else:
        config["model"]["init_args"]["policy"] = {"class_path": f"mine.{name}", "init_args": {"weights": "my/model"}}
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    words = ["fit", "--config", "mine.yaml", "--trainer.max_epochs", "1", "--data.evaluation_prompts", "0", *QUIET]
    assert main(words).trainer.global_step == 8


def test_a_model_that_reads_no_folder_is_not_looked_at_twice(place):
    shape = {"class_path": "lightning_nlf.networks.GRUPolicy", "init_args": {"vocabulary": 8, "width": 4}}
    assert not preflight._reads_folders({"class_path": "x", "init_args": {"policy": shape}})
    read = {"class_path": "lightning_nlf.networks.TransformerPolicy", "init_args": {"weights": "my/model"}}
    assert preflight._reads_folders({"class_path": "x", "init_args": {"policy": shape, "value": read}})
    checkpoint = {"class_path": "lightning_nlf.networks.TransformerPolicy", "init_args": {"weights": "a.ckpt"}}
    assert not preflight._reads_folders({"class_path": "x", "init_args": {"policy": checkpoint, "value": read}})
