"""Checks of a model folder in Hugging Face layout, before anything is built from it; none of its code is run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION, ADAPTER = "generation_config.json", "adapter_config.json"
MOST_LAYERS = 1000
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
STORED = (*LAYERS, "hidden_size", "n_embd", "d_model", "intermediate_size", "vocab_size")  # each has numbers of its own
PER_LAYER = ("intermediate_size", "n_head", "n_heads", "num_attention_heads", "head_dim")  # may be a list
SIZES = (*STORED, "n_head", "n_heads", "num_attention_heads", "head_dim", "n_positions", "max_position_embeddings")
BYTES = 4  # of a float32


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file, not read yet."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: F32, BF16, I64, …


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: there is no such file, it cannot be read, or is no JSON object in UTF-8. The message names it.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"weights: {path.parent} has no {path.name}, so it is no model in Hugging Face layout"
        ) from None
    except OSError as error:
        raise ValueError(f"weights: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError(f"weights: {path} is no text in UTF-8: fetch or save the model again") from None
    except (ValueError, RecursionError) as error:  # a BOM too, and an integer of thousands of digits
        raise ValueError(f"weights: {path} is no JSON: {error}: fetch or save the model again") from None
    if not isinstance(content, dict):
        raise ValueError(f"weights: {path} must hold a JSON object, and holds a {type(content).__name__}")
    return content


def refuse_sizes(config: Mapping[str, Any], where: str, elements: float = math.inf) -> None:
    """Sizes that no model has.

    Args: config: content of config.json; where: it stands; elements: numbers that are stored beside it.

    Raises:
        ValueError: a size that is no whole number of at least 1, too many layers, or more of them than is stored.
    """
    named = {name: config[name] for name in SIZES if config.get(name) is not None}
    for name, value in named.items():
        if isinstance(value, list) and name in PER_LAYER:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{where}: {name}: got {value!r}, must be a whole number of at least 1")
        if name in LAYERS and value > MOST_LAYERS:
            raise ValueError(f"{where}: {name}: got {value}, must be at most {MOST_LAYERS}")
        if name in STORED and value > elements:
            raise ValueError(f"{where}: {name}: got {value}, and the weights beside it are {elements} numbers in all")


def refuse_memory(build: Callable[[], nn.Module], where: str) -> None:
    """What `build` makes, made without memory first.

    Raises:
        ValueError: sizes that make no tensors, or parameters that alone need more memory than this machine has.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (RuntimeError, OverflowError) as error:  # the product of the sizes overflows 64 bits
        raise ValueError(f"{where}: its sizes make no tensors: {str(error).splitlines()[0]}") from error
    needed = BYTES * sum(parameter.numel() for parameter in model.parameters())
    memory = psutil.virtual_memory().total
    if needed > memory:
        raise ValueError(
            f"{where}: its parameters need {needed / 2**30:,.0f} GiB in float32, and this machine has "
            f"{memory / 2**30:,.0f}: use a smaller model, or one of other sizes"
        )


@contextmanager
def telling(where: str) -> Iterator[None]:
    """Around another library's work on a file.

    Raises:
        ValueError: whatever is raised within, with `where` in front of it.
    """
    try:
        yield
    except Exception as error:  # about the file that is named: it stays as the cause
        if isinstance(error, ValueError) and str(error).startswith(where):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{where}: {type(error).__name__}: {reason}") from error


def files_in(folder: Path) -> list[Path]:
    """Its safetensors.

    Raises:
        ValueError: there are none, or one that the index names is missing or elsewhere.
    """
    if (folder / WEIGHTS).exists() or (folder / WEIGHTS).is_symlink():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter"))
        if files:
            return files
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        why = f": {pickles[0]} is a pickle, which could run code, and is not read" if pickles else ""
        raise ValueError(f"weights: {folder} has no *.safetensors{why}; save the model with save_pretrained")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"weights: {index}: weight_map: must map the name of each tensor to its file")
    files = [folder / name for name in sorted(set(places.values()))]
    for file in files:
        if file.parent != folder or file.suffix != ".safetensors":
            raise ValueError(f"weights: {index}: weight_map: {file.name} is no safetensors file beside it")
        if not file.is_file():
            raise ValueError(f"weights: {index} names {file.name}, and there is none: fetch or save the model again")
    return files


def tensors_in(folder: Path) -> dict[str, Stored]:
    """All tensors by name, by the heads of the files.

    Raises:
        ValueError: as `files_in`; a file that is damaged; weights that are whole numbers.
    """
    stored: dict[str, Stored] = {}
    for file in files_in(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 no mapping
                    head = opened.get_slice(key)
                    stored[key] = Stored(file, tuple(head.get_shape()), head.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"weights: {file} is damaged: {error}: fetch or save the model again") from error
    for key, tensor in stored.items():
        if key.endswith(".weight") and not tensor.dtype.startswith(("F", "BF")):
            raise ValueError(f"weights: {tensor.file}: {key} is {tensor.dtype}, and must be of floating-point numbers")
    return stored


def read_tensors(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The numbers. Raises ValueError: a file that is damaged."""
    tensors: dict[str, Tensor] = {}
    for file in {tensor.file for tensor in stored.values()}:
        with telling(f"weights: {file}"), safe_open(file, framework="pt") as opened:
            tensors |= {key: opened.get_tensor(key) for key in stored if stored[key].file == file}
    return tensors


def refuse_not_finite(named: Mapping[str, Tensor], folder: Path) -> None:
    """Raises ValueError: a weight that is infinite or not a number."""
    for name, tensor in named.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"weights: {folder}: {name} holds numbers that are not finite: fetch or save it again")


def checked(folder: Path) -> dict[str, Any]:
    """Content of config.json of a folder that could be a model.

    Raises:
        ValueError: one that is damaged, holds a PEFT adapter, or keeps its weights as a pickle.
    """
    if (folder / ADAPTER).exists():
        raise ValueError(
            f"weights: {folder / ADAPTER}: this is an adapter of PEFT, or has one: merge it into its model "
            "(merge_and_unload) and save that"
        )
    config = read_json(folder / CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise ValueError(f"weights: {folder / CONFIG}: model_type: must name an architecture")
    elements = sum(math.prod(tensor.shape) for tensor in tensors_in(folder).values())
    refuse_sizes(config, f"weights: {folder / CONFIG}", elements)
    return config


def dtype_in(folder: Path) -> torch.dtype:
    """What most weights of a model folder are stored as; float32 where that is none that we write."""
    counts: Counter[str] = Counter()
    for tensor in tensors_in(folder).values():
        counts[tensor.dtype] += math.prod(tensor.shape)
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(counts.most_common(1)[0][0], torch.float32)
