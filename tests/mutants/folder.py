"""Damaged folders in Hugging Face layout: a tiny model and its tokenizer, as policy and tokenizer of a yaml."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from mutants.verdicts import Mutant
from safetensors.torch import load_file, save_file

from data_modules.text import ByteTokenizer, WordTokenizer
from lightning_nlf.cli.command_line import main
from lightning_nlf.networks import DecoderShape, TransformerPolicy

POLICIES = ("HuggingFacePolicy", "TransformerPolicy")
FAMILIES = ("llama", "gpt2")
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
SIZES = {
    "llama": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    "gpt2": ("vocab_size", "n_embd", "n_layer", "n_positions"),
}
Damage = Callable[[Path, random.Random], tuple[str, tuple[str, ...]]]  # returns a description, and words of the message


class Poison:
    """A pickle that creates a file if it is loaded as code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def mutants(seed: int, count: int, folder: Path) -> Iterator[Mutant]:
    rng, damages = random.Random(seed), list(DAMAGES.items())
    for family in FAMILIES:
        _write_base(folder / family, family)
    for number in range(count):
        name, damage = damages[number % len(damages)]
        place, family = folder / f"{number:04}", rng.choice(FAMILIES)
        policy = POLICIES[number // len(damages) % 2]
        shutil.copytree(folder / family, place)
        description, names = damage(place, rng)
        yield Mutant(
            "folder", name, f"{family} as {policy}, {description}", names, partial(_attempt, place, policy),
            may_be_accepted=name in HARMLESS,
        )  # fmt: skip
        shutil.rmtree(place)


def _write_base(folder: Path, family: str) -> None:
    torch.manual_seed(0)
    shape = DecoderShape(258, layers=2, heads=4, width=32, context=64, family=family, kv_heads=2 * (family == "llama"))  # type: ignore[arg-type]
    TransformerPolicy(shape).export(folder)
    ByteTokenizer().fit().save(folder)


def _attempt(folder: Path, policy: str) -> int | None:
    """Build a user's yaml through the command line, and check the token ids as a fit does first."""
    network = {"class_path": f"lightning_nlf.networks.{policy}", "init_args": {"weights": str(folder)}}
    tokenizer = {"class_path": "data_modules.text.FolderTokenizer", "init_args": {"path": str(folder)}}
    data = {"task": {"class_path": "data_modules.text.PositiveReviews"}, "tokenizer": tokenizer}
    config = {
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 1},
        "model": {"class_path": "lightning_nlf.objectives.ReinforcePolicy", "init_args": {"policy": network}},
        "data": {"class_path": "data_modules.text.TextDataModule", "init_args": data},
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    try:
        line = main(["fit", "--config", str(path), "--run_dir", str(folder.with_suffix(".run"))], run=False)
        line.model.policy.check_tokenizer(None, line.datamodule.tokenizer.size)
        line.datamodule.tokenizer.encode("a word")
    except ValueError as error:
        if "vocabulary" not in str(error):
            raise
        print("error:", error, file=sys.stderr)
        return 2
    finally:
        assert not (folder / "marker").exists(), "code of the folder was run"
    return 0


# ---- weights


def _truncated(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    content = (folder / WEIGHTS).read_bytes()
    length = rng.choice([0, 4, 8, 100, rng.randrange(len(content)), len(content) - 1])
    (folder / WEIGHTS).write_bytes(content[:length])
    return f"{WEIGHTS}: the first {length} bytes", (WEIGHTS,)


def _flipped(head: bool, folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    content = bytearray((folder / WEIGHTS).read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    place = rng.randrange(begin) if head else rng.randrange(begin, len(content))
    bit = rng.randrange(8)
    content[place] ^= 1 << bit
    (folder / WEIGHTS).write_bytes(content)
    return f"{WEIGHTS}: bit {bit} of byte {place}", (WEIGHTS, str(folder))


def _other_file(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    contents = ["", "<!DOCTYPE html><html></html>", "version https://git-lfs.github.com/spec/v1\nsize 9\n", "\0" * 99]
    content, name = rng.choice(contents), rng.choice([WEIGHTS, CONFIG, TOKENIZER])
    (folder / name).write_text(content)
    return f"{name}: {content[:20]!r}", (name,)


def _changed_tensor(change: Callable[[torch.Tensor], torch.Tensor | None], folder: Path, rng: random.Random) -> Any:
    tensors = load_file(folder / WEIGHTS)
    name = rng.choice(sorted(name for name in tensors if name.endswith(".weight")))
    changed = change(tensors.pop(name))
    save_file(tensors | ({} if changed is None else {name: changed}), folder / WEIGHTS, metadata={"format": "pt"})
    parts = name.removeprefix("transformer.").removeprefix("model.")
    return f"{WEIGHTS}: {name}", (parts, name)


def _not_finite(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = float("nan")
    return tensor


def _pickled(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    (folder / WEIGHTS).unlink()
    name = rng.choice(["pytorch_model.bin", "model.bin"])
    (folder / name).write_bytes(pickle.dumps(Poison(folder / "marker")))
    return f"{name} in the place of {WEIGHTS}", (name,)


def _adapter(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Poison(folder / "marker")))
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder), "target_modules": ["q_proj"]})
    )
    if rng.random() < 0.5:
        (folder / WEIGHTS).unlink()
    return "an adapter of PEFT", ("adapter_config.json",)


def _index(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    second = rng.choice(["model-00002-of-00002.safetensors", "../model-2.safetensors", "/dev/zero", 5, None, "x.bin"])
    places: Any = dict.fromkeys(tensors, "model-00001-of-00002.safetensors") | {sorted(tensors)[0]: second}
    content = rng.choice([{"weight_map": places}, {"weight_map": []}, {}, [], {"weight_map": {}}])
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(content))
    return f"the index names {second!r} or is {str(content)[:20]}", (f"{WEIGHTS}.index.json",)


# ---- config.json and generation_config.json


def _changed_config(folder: Path, key: str, value: Any) -> tuple[str, tuple[str, ...]]:
    config = json.loads((folder / CONFIG).read_text())
    config[key] = value
    (folder / CONFIG).write_text(json.dumps(config))
    return f"{CONFIG}: {key}: {value!r}", (key, CONFIG, "tensor", str(folder))


def _size(folder: Path, rng: random.Random) -> str:
    return rng.choice(SIZES[json.loads((folder / CONFIG).read_text())["model_type"]])


def _wrong_type(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    return _changed_config(folder, _size(folder, rng), rng.choice(["2", 2.5, True, [2], {"a": 2}, ""]))


def _out_of_range(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    return _changed_config(folder, _size(folder, rng), rng.choice([0, -1, 10**7, 10**12, 10**30]))


def _wrong_shape(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    key = _size(folder, rng)
    size = json.loads((folder / CONFIG).read_text())[key]
    return _changed_config(folder, key, size + rng.choice([1, size, 3 * size]))


def _odd_knob(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    llama = "hidden_size" in (folder / CONFIG).read_text()
    knobs: list[tuple[str, Any]] = [("model_type", value) for value in (5, None, "lama", "", "bert")]
    knobs += [("tie_word_embeddings", "no"), ("eos_token_id", "</s>"), ("eos_token_id", [1, "x"])]
    numbers = ("rms_norm_eps", "num_attention_heads") if llama else ("layer_norm_epsilon", "n_head")
    knobs += [(name, value) for name in numbers for value in ("x", [], -1)]
    knobs += [("rope_parameters", [1]), ("hidden_act", "swoosh")] if llama else [("activation_function", "swoosh")]
    return _changed_config(folder, *rng.choice(knobs))


def _missing_key(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    config = json.loads((folder / CONFIG).read_text())
    key = rng.choice([*SIZES[config["model_type"]], "model_type"])
    if key == "n_positions":
        key = "n_embd"
    del config[key]
    (folder / CONFIG).write_text(json.dumps(config))
    return f"{CONFIG}: without {key}", (key, CONFIG, "tensor", str(folder))


def _remote_code(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    _changed_config(folder, "auto_map", {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (folder / "code.py").write_text(f"import pathlib\npathlib.Path({str(folder / 'marker')!r}).touch()\n")
    if rng.random() < 0.5:
        _changed_config(folder, "model_type", "custom")
    return "auto_map names code of the folder", (CONFIG, str(folder))


# ---- any file


def _broken_json(name: str, folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    path = folder / name
    content = path.read_bytes() if path.exists() else b'{"eos_token_id": 1}'
    ways = [content[: rng.randrange(len(content) - 1)], b"[]", b"5", b'"x"', b"{'a': 1}", b"\xff\xfe" + content]
    ways += [b"[" * 5000, b'{"a": ' + b"9" * 5000 + b"}", content[:-3] + b"\x80" + content[-3:]]
    chosen = rng.choice(ways)
    path.write_bytes(chosen)
    return f"{name}: {chosen[:30]!r}… ({len(chosen)} bytes)", (name,)


def _bom(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    name = rng.choice([CONFIG, TOKENIZER, "tokenizer_config.json"])
    (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    return f"{name}: begins with a BOM", (name,)


def _missing(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    name = rng.choice([CONFIG, WEIGHTS, TOKENIZER])
    (folder / name).unlink()
    return f"no {name}", (name, "*.safetensors")


def _not_a_file(loop: bool, folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    name = rng.choice([CONFIG, WEIGHTS, TOKENIZER])
    (folder / name).unlink()
    if loop:
        os.symlink(name, folder / name)
    else:
        (folder / name).mkdir()
    return f"{name} is a {'link to itself' if loop else 'folder'}", (name, "*.safetensors")


# ---- the tokenizer


def _odd_tokenizer(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    content = json.loads((folder / TOKENIZER).read_text())
    key, value = rng.choice(
        [("model", {}), ("model", None), ("model", {"type": "BPE", "vocab": {"a": -1}, "merges": []}), ("version", 9)]
        + [("added_tokens", [{"id": "x"}]), ("pre_tokenizer", {"type": "Nothing"}), ("decoder", 5)]
    )
    content[key] = value
    (folder / TOKENIZER).write_text(json.dumps(content))
    return f"{TOKENIZER}: {key}: {value!r}", (TOKENIZER,)


def _odd_special(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    path, key = folder / "tokenizer_config.json", rng.choice(["eos_token", "pad_token"])
    content = json.loads(path.read_text())
    (folder / "special_tokens_map.json").unlink()
    content[key] = rng.choice([5, [], {}, {"content": 7}, "", None, True])
    path.write_text(json.dumps(content))
    return f"{path.name}: {key}: {content[key]!r}", (path.name, key.removesuffix("_token"))


def _swapped(folder: Path, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    words = rng.randrange(300, 600)
    WordTokenizer().fit([" ".join(f"w{word}" for word in range(words)), "a word"]).save(folder)
    return f"a tokenizer of {words} words more", ("vocabulary",)


DAMAGES: dict[str, Damage] = {
    "weights truncated": _truncated,
    "head of the weights flipped": partial(_flipped, True),
    "weights flipped": partial(_flipped, False),
    "another file in its place": _other_file,
    "tensor missing": partial(_changed_tensor, lambda tensor: None),
    "tensor of another shape": partial(_changed_tensor, lambda tensor: tensor.repeat(*[2] * tensor.ndim)),
    "tensor of whole numbers": partial(_changed_tensor, lambda tensor: (99 * tensor).long()),
    "tensor not finite": partial(_changed_tensor, _not_finite),
    "pickle": _pickled,
    "adapter": _adapter,
    "index": _index,
    "config of a wrong type": _wrong_type,
    "config out of range": _out_of_range,
    "config of another shape": _wrong_shape,
    "config with an odd knob": _odd_knob,
    "config without a key": _missing_key,
    "config names code": _remote_code,
    "config broken": partial(_broken_json, CONFIG),
    "generation_config broken": partial(_broken_json, "generation_config.json"),
    "BOM": _bom,
    "file missing": _missing,
    "link to itself": partial(_not_a_file, True),
    "folder in the place of a file": partial(_not_a_file, False),
    "tokenizer broken": partial(_broken_json, TOKENIZER),
    "tokenizer_config broken": partial(_broken_json, "tokenizer_config.json"),
    "tokenizer with an odd part": _odd_tokenizer,
    "special token of a wrong type": _odd_special,
    "tokenizer of another model": _swapped,
}
# What may be read rightly: another number among the weights, a default, code that is not run, a version nobody checks.
HARMLESS = ("weights flipped", "head of the weights flipped", "config with an odd knob", "config names code")
HARMLESS += ("tokenizer with an odd part", "BOM")
