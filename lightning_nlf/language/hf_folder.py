"""Checks of a model folder in the Hugging Face layout, before a model is built from it. No code of the folder runs."""

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
STORED = (*LAYERS, "hidden_size", "n_embd", "d_model", "intermediate_size", "vocab_size")  # sizes of stored tensors
PER_LAYER = ("intermediate_size", "n_head", "n_heads", "num_attention_heads", "head_dim")  # options that may be lists
SIZES = (*STORED, "n_head", "n_heads", "num_attention_heads", "head_dim", "n_positions", "max_position_embeddings")
BYTES = 4  # bytes of a float32 number


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file that has not been read yet."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # in the notation of safetensors: F32, BF16, I64, …


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        ValueError: the file is missing, unreadable, or not a JSON object in UTF-8. The message gives the path.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"weights: {path.parent} has no {path.name}, so it is not a model in the Hugging Face layout"
        ) from None
    except OSError as error:
        raise ValueError(f"weights: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError(f"weights: {path} is not text in UTF-8; download or save the model again") from None
    except (ValueError, RecursionError) as error:  # also raised for a BOM, and for integers with thousands of digits
        raise ValueError(f"weights: {path} is not JSON: {error}; download or save the model again") from None
    if not isinstance(content, dict):
        raise ValueError(f"weights: {path} must contain a JSON object, but contains a {type(content).__name__}")
    return content


def refuse_sizes(config: Mapping[str, Any], where: str, elements: float = math.inf) -> None:
    """Refuse sizes that no model can have.

    Args: config: content of config.json; where: place of the config, for messages; elements: number of stored weights.

    Raises:
        ValueError: a size is not a whole number of at least 1, or is larger than the number of weights; the number of
            layers is too large.
    """
    sizes = {name: config[name] for name in SIZES if config.get(name) is not None}
    for name, value in sizes.items():
        if isinstance(value, list) and name in PER_LAYER:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{where}: {name}: got {value!r}, must be a whole number of at least 1")
        if name in LAYERS and value > MOST_LAYERS:
            raise ValueError(f"{where}: {name}: got {value}, must be at most {MOST_LAYERS}")
        if name in STORED and value > elements:
            raise ValueError(f"{where}: {name}: got {value}, but the folder has only {elements} weights in all")


def refuse_memory(build: Callable[[], nn.Module], where: str) -> None:
    """Refuse a model that does not fit in memory. `build` is called on the meta device, which needs no memory.

    Raises:
        ValueError: the sizes are invalid, or the parameters alone need more memory than this machine has.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (RuntimeError, OverflowError) as error:  # for example if a product of sizes overflows 64 bits
        raise ValueError(f"{where}: no model can have these sizes: {str(error).splitlines()[0]}") from error
    needed = BYTES * sum(parameter.numel() for parameter in model.parameters())
    memory = psutil.virtual_memory().total
    if needed > memory:
        raise ValueError(
            f"{where}: its parameters need {needed / 2**30:,.0f} GiB in float32, but this machine has "
            f"{memory / 2**30:,.0f} GiB; use a smaller model, or smaller sizes"
        )


@contextmanager
def telling(where: str) -> Iterator[None]:
    """Context manager that turns errors of another library into one line that starts with `where`.

    Raises:
        ValueError: any exception is raised inside.
    """
    try:
        yield
    except Exception as error:  # any error is about this file, and is kept as the cause
        if isinstance(error, ValueError) and str(error).startswith(where):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{where}: {type(error).__name__}: {reason}") from error


def files_in(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        ValueError: the folder has no such files, or a file in the index is missing or in a different folder.
    """
    if (folder / WEIGHTS).exists() or (folder / WEIGHTS).is_symlink():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter"))
        if files:
            return files
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        why = f": {pickles[0]} is a pickle, which could run code, so it is not read" if pickles else ""
        raise ValueError(f"weights: {folder} has no *.safetensors{why}; save the model with save_pretrained")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"weights: {index}: weight_map must map the name of each tensor to its file")
    files = [folder / name for name in sorted(set(places.values()))]
    for file in files:
        if file.parent != folder or file.suffix != ".safetensors":
            raise ValueError(f"weights: {index}: weight_map: {file.name} is not a safetensors file in the same folder")
        if not file.is_file():
            raise ValueError(f"weights: {index} names {file.name}, which is missing; download or save the model again")
    return files


def tensors_in(folder: Path) -> dict[str, StoredTensor]:
    """The tensors in a model folder, by name, from the headers of the files.

    Raises:
        ValueError: see `files_in`; a file is damaged; weights are integers, as in quantised models.
    """
    headers: dict[str, StoredTensor] = {}
    for file in files_in(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 not a mapping
                    head = opened.get_slice(key)
                    headers[key] = StoredTensor(file, tuple(head.get_shape()), head.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"weights: {file} is damaged: {error}; download or save the model again") from error
    for key, tensor in headers.items():
        if key.endswith(".weight") and not tensor.dtype.startswith(("F", "BF")):
            raise ValueError(f"weights: {tensor.file}: {key} is {tensor.dtype}, but must be floating-point numbers")
    return headers


def read_tensors(headers: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """Read the values of tensors. Raises ValueError: a file is damaged."""
    tensors: dict[str, Tensor] = {}
    for file in {tensor.file for tensor in headers.values()}:
        with telling(f"weights: {file}"), safe_open(file, framework="pt") as opened:
            tensors |= {key: opened.get_tensor(key) for key in headers if headers[key].file == file}
    return tensors


def refuse_not_finite(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Check that all weights are finite. Raises ValueError: a weight is infinite or NaN."""
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"weights: {folder}: {name} has infinite or NaN weights; download or save the model again")


def checked(folder: Path) -> dict[str, Any]:
    """Check a model folder, and return the content of its config.json.

    Raises:
        ValueError: the folder is damaged, contains a PEFT adapter, or stores its weights as a pickle.
    """
    if (folder / ADAPTER).exists():
        raise ValueError(
            f"weights: {folder / ADAPTER}: the folder contains a PEFT adapter; merge it into its model "
            "(merge_and_unload) and save that"
        )
    config = read_json(folder / CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise ValueError(f"weights: {folder / CONFIG}: model_type: must be the name of an architecture")
    elements = sum(math.prod(tensor.shape) for tensor in tensors_in(folder).values())
    refuse_sizes(config, f"weights: {folder / CONFIG}", elements)
    return config


def dtype_in(folder: Path) -> torch.dtype:
    """The dtype of most weights in a model folder. If we cannot write this dtype, the result is float32."""
    counts: Counter[str] = Counter()
    for tensor in tensors_in(folder).values():
        counts[tensor.dtype] += math.prod(tensor.shape)
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(counts.most_common(1)[0][0], torch.float32)
