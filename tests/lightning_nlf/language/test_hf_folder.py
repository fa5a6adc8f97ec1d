"""Damaged or malicious folders in the Hugging Face layout give one line with the file, and no code runs."""

import builtins
import json
import pickle
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from data_modules.text import ByteTokenizer, FolderTokenizer
from lightning_nlf.cli.command_line import main
from lightning_nlf.language import hf_folder
from lightning_nlf.networks import DecoderShape, HuggingFacePolicy, HuggingFaceReward, TransformerPolicy

transformers = pytest.importorskip("transformers")

NETWORKS = [HuggingFacePolicy, HuggingFaceReward, TransformerPolicy]
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Poison:
    """A pickle that creates a file if it is loaded as code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    shape = DecoderShape(258, layers=1, heads=2, width=16, context=32, family="llama", kv_heads=1, hidden=24)
    TransformerPolicy(shape).export(tmp_path / "model")
    ByteTokenizer().fit().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def marker(tmp_path):
    """Malicious pickles create the file if they are loaded: this checks that the attack itself works."""
    path = tmp_path / "marker"
    pickle.loads(pickle.dumps(Poison(path)))
    assert path.exists()
    path.unlink()
    return path


def change(folder, **knobs):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | knobs))


def change_tensor(folder, new, name="model.layers.0.mlp.up_proj.weight"):
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {name: new(tensors[name])}, folder / WEIGHTS)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin"])
def test_a_pickle_is_never_read(network, name, folder, marker):
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Poison(marker)))
    with pytest.raises(ValueError, match=f"^weights: .*no \\*.safetensors: {name} is a pickle, which could run code"):
        network(weights=str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_is_refused_unread(network, alone, folder, marker):
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Poison(marker)))
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    if alone:
        (folder / WEIGHTS).unlink()
    with pytest.raises(
        ValueError, match="^weights: .*adapter_config.json: the folder contains a PEFT adapter.*merge_and_unload"
    ):
        network(weights=str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["llama", "custom"])
def test_code_of_the_folder_is_never_run(network, kind, folder, marker, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("somebody is asked"))
    change(folder, model_type=kind, auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (folder / "code.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    if kind == "llama":
        network(weights=str(folder))  # refused by transformers itself
    else:
        with pytest.raises(ValueError, match="^weights: .*(code of its own|is a custom)"):
            network(weights=str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../other.safetensors", "/dev/zero", "other.bin", 5, "absent.safetensors"])
@pytest.mark.parametrize("network", NETWORKS)
def test_an_index_names_files_beside_it(network, name, folder):
    (folder / WEIGHTS).rename(folder / "one.safetensors")
    (folder.parent / "other.safetensors").write_bytes((folder / "one.safetensors").read_bytes())
    index = {"weight_map": {"model.norm.weight": "one.safetensors", "lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"^weights: .*model\.safetensors\.index\.json"):
        network(weights=str(folder))


SIZES = [("num_hidden_layers", 10**7), ("hidden_size", 10**9), ("vocab_size", 10**30), ("num_hidden_layers", 0)]
SIZES += [("vocab_size", "258"), ("hidden_size", True), ("intermediate_size", -4)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("name", "size"), SIZES)
def test_sizes_beyond_reason_are_refused_before_anything_is_built(network, name, size, folder):
    change(folder, **{name: size})
    begin = time.process_time()
    with pytest.raises(ValueError, match=f"^weights: .*config.json: {name}: got {size!r}, (must be|but the folder)"):
        network(weights=str(folder))
    assert time.process_time() - begin < 2


def test_so_are_those_of_a_config_and_of_a_shape(monkeypatch):
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 10**7, "n_head": 2, "n_positions": 32, "vocab_size": 8}
    with pytest.raises(ValueError, match="^config: n_layer: got 10000000, must be at most 1000$"):
        HuggingFacePolicy(config=config)
    with pytest.raises(ValueError, match="^config: its parameters need .* GiB in float32, but this machine has"):
        HuggingFacePolicy(config=config | {"n_layer": 1, "vocab_size": 10**12})
    with pytest.raises(ValueError, match="^config: model_type is missing"):
        HuggingFacePolicy(config={"n_layer": 1})
    with pytest.raises(ValueError, match="^shape.layers: got 10000000, must be at most 1000$"):
        TransformerPolicy(DecoderShape(8, layers=10**7))
    with pytest.raises(ValueError, match="^shape: its parameters need .* GiB in float32, but this machine has"):
        TransformerPolicy(DecoderShape(10**10))
    with pytest.raises(ValueError, match="^shape: no model can have these sizes"):
        TransformerPolicy(DecoderShape(10**18, width=10**6))
    shape = DecoderShape(100, layers=1, heads=1, width=10, context=5, hidden=10)
    parameters = sum(parameter.numel() for parameter in TransformerPolicy(shape).parameters())
    memory = type("Memory", (), {"total": 4 * parameters - 1})
    monkeypatch.setattr(hf_folder.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(ValueError, match="this machine has"):
        TransformerPolicy(shape)


def cut(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def replaced_by_a_folder(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()


def replaced_by_a_loop(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to(name)


def replaced_by_a_page(folder, name):
    (folder / name).write_text("<!DOCTYPE html>")


@pytest.mark.parametrize("damage", [cut, replaced_by_a_folder, replaced_by_a_loop, replaced_by_a_page])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json"])
def test_a_damaged_file_is_named_in_one_line(name, damage, folder, capfd):
    damage(folder, name)
    for network in NETWORKS if name != "tokenizer.json" else ():
        with pytest.raises(ValueError, match=f"^weights: .*({name}|safetensors)"):
            network(weights=str(folder))
    policy = {"class_path": "lightning_nlf.networks.HuggingFacePolicy", "init_args": {"weights": str(folder)}}
    tokenizer = {"class_path": "data_modules.text.FolderTokenizer", "init_args": {"path": str(folder)}}
    data = {"task": {"class_path": "data_modules.text.PositiveReviews"}, "tokenizer": tokenizer}
    config = {
        "trainer": {"accelerator": "cpu", "logger": False},
        "model": {"class_path": "lightning_nlf.objectives.ReinforcePolicy", "init_args": {"policy": policy}},
        "data": {"class_path": "data_modules.text.TextDataModule", "init_args": data},
    }
    path = folder.parent / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as ending:
        main(["fit", "--config", str(path), "--run_dir", str(folder.parent / "run")], run=False)
    message = capfd.readouterr().err.strip()
    assert ending.value.code == 2
    assert message.startswith("error: ") and "\n" not in message and name in message


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("new", "message"),
    [
        (lambda x: torch.cat([x, x]), r"up_proj.* has shape \(\d+, 16\), but config.json gives \(\d+, 16\)"),
        (lambda x: torch.cat([x, x], 1), r"up_proj.* has shape \(\d+, 32\), but config.json gives \(\d+, 16\)"),
        (lambda x: x[0], r"up_proj.* has shape \(16,\), but config.json gives \(\d+, 16\)"),
        (lambda x: (99 * x).long(), r"model\.safetensors: .*up_proj.weight is I64"),
        (lambda x: x.fill_(torch.inf), r"up_proj.weight has infinite or NaN weights"),
    ],
)
def test_tensors_that_are_none_are_named(network, new, message, folder):
    change_tensor(folder, new)
    with pytest.raises(ValueError, match=f"^weights: .*{message}"):
        network(weights=str(folder))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_tensor_that_is_missing_is_named_and_never_drawn(network, folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"^weights: .* has no tensor (model\.)?norm\.weight"):
        network(weights=str(folder))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"vocab_size": None}, "vocab_size: missing"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps: got 'x', must be a number above 0"),
        ({"rope_parameters": [1]}, "rope_parameters: must be a JSON object"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: got 'no', must be true or false"),
        ({"model_type": 5}, "model_type: must be the name of an architecture"),
    ],
)
def test_knobs_of_our_decoder_are_checked_by_name(knobs, message, folder):
    config = {key: value for key, value in (json.loads((folder / CONFIG).read_text()) | knobs).items()}
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ValueError, match=f"^weights: .*config.json: {message}"):
        TransformerPolicy(weights=str(folder))


@pytest.mark.parametrize("content", [b"[]", b'{"a": ', b"\xff\xfe{}", b"[" * 100_000, b'{"eos_token": 5}'])
def test_tokenizer_config_that_is_none_is_named(content, folder):
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ValueError, match="^path: .*tokenizer_config.json"):
        FolderTokenizer(str(folder))


def test_a_byte_order_mark_in_front_of_a_tokenizer_is_read_over(folder):
    plain = FolderTokenizer(str(folder)).digest
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert FolderTokenizer(str(folder)).digest == plain
