"""Load and save GPT-2, Llama, Qwen2 and Qwen3 in the Hugging Face layout: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_nlf.language import hf_folder
from lightning_nlf.language.decoder import Decoder
from lightning_nlf.language.hf_config import config_of
from lightning_nlf.language.hf_folder import StoredTensor
from lightning_nlf.language.shape import DecoderShape

# Our names → the Hugging Face names. One of our parameters can stack several of theirs, from top to bottom.
GPT2 = {
    "attention_norm": ["ln_1"],
    "qkv": ["attn.c_attn"],
    "out": ["attn.c_proj"],
    "mlp_norm": ["ln_2"],
    "up": ["mlp.c_fc"],
    "down": ["mlp.c_proj"],
}
LLAMA = {
    "attention_norm": ["input_layernorm"],
    "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "query_norm": ["self_attn.q_norm"],
    "key_norm": ["self_attn.k_norm"],
    "out": ["self_attn.o_proj"],
    "mlp_norm": ["post_attention_layernorm"],
    "up": ["mlp.gate_proj", "mlp.up_proj"],
    "down": ["mlp.down_proj"],
}


FILES, OTHER_FILES = ["*.json", "*.safetensors"], ["*/*", "consolidated*"]  # files of a model on the hub


def folder_of(weights: str | None) -> Path | None:
    """The folder of `weights` in the Hugging Face layout, possibly a download from the hub. None for other weights.

    Raises:
        ValueError: the hub has no such id, or huggingface_hub is not installed.
    """
    if weights is None or Path(weights).is_file() or weights.endswith(".ckpt"):
        return None
    if Path(weights).is_dir():
        return Path(weights)
    if weights.count("/") > 1 or weights.startswith((".", "/", "~")):  # not an id on the hub
        return None
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError(
            f"weights: there is no {weights} here; to load it from the hub, pip install lightning_nlf[text]"
        ) from None
    try:
        return Path(snapshot_download(weights, allow_patterns=FILES, ignore_patterns=OTHER_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise ValueError(f"weights: {weights} is not a file or folder, and not on the hub: {reason}") from None


def names(shape: DecoderShape, parameters: Iterable[str]) -> Iterator[tuple[str, list[str], bool]]:
    """Our parameters, their Hugging Face names without the common prefix, and whether those tensors are transposed."""
    gpt2 = shape.family == "gpt2"
    whole = {"embed": "wte", "places": "wpe", "norm": "ln_f"} if gpt2 else {"embed": "embed_tokens", "norm": "norm"}
    for name in parameters:
        module, kind = name.rsplit(".", 1)
        if module in whole:
            yield name, [f"{whole[module]}.{kind}"], False
            continue
        _, layer, part = module.split(".")
        theirs = [f"{x}.{kind}" for x in layer_names(shape, int(layer), part)]
        yield name, theirs, gpt2 and kind == "weight" and "norm" not in part


def layer_names(shape: DecoderShape, layer: int, part: str) -> list[str]:
    """Hugging Face names, without the common prefix, of the tensors in a `part` of a block, from top to bottom."""
    gpt2 = shape.family == "gpt2"
    return [f"{'h' if gpt2 else 'layers'}.{layer}.{x}" for x in (GPT2 if gpt2 else LLAMA)[part]]


def heights(shape: DecoderShape, part: str, rows: int) -> list[int]:
    """Number of rows of each Hugging Face tensor that is stacked in our `part`, which has `rows` rows."""
    theirs = len(layer_names(shape, 0, part))
    if part == "qkv" and theirs == 3:
        return [shape.heads * shape.head_width] + [shape.kv_heads * shape.head_width] * 2
    return [rows // theirs] * theirs


def body(shape: DecoderShape) -> str:
    """The common prefix of the Hugging Face names in a model with a head."""
    return "transformer." if shape.family == "gpt2" else "model."


def base_parameters(decoder: Decoder) -> list[str]:
    """Names of the parameters without LoRA additions."""
    return [name for name, _ in decoder.named_parameters() if "lora_" not in name]


@torch.no_grad()
def load(folder: Path, decoder: Decoder, head: nn.Linear | None) -> None:
    """Load the weights of the decoder, and of the head if the head is not tied to the embedding.

    Raises:
        ValueError: there are no safetensors files, or a tensor is missing or has a different shape.
    """
    shape = decoder.shape
    tensors = hf_folder.tensors_in(folder)
    headers = {key.removeprefix("transformer.").removeprefix("model."): {key: x} for key, x in tensors.items()}
    for name, theirs, transposed in names(shape, base_parameters(decoder)):
        parts = [_read_tensor(headers, key, folder) for key in theirs]
        parameter = decoder.get_parameter(name)
        parts = [part.T if transposed and part.ndim == 2 else part for part in parts]
        for key, part in zip(theirs, parts, strict=True):
            if part.ndim != parameter.ndim or part.shape[1:] != parameter.shape[1:]:
                _refuse(f"{folder}: {key}", part, parameter)
        value = torch.cat(parts)
        _fill(parameter, value, f"{folder}: {', '.join(theirs)}")
    if head is not None:
        _fill(head.weight, _read_tensor(headers, "lm_head.weight", folder), f"{folder}: lm_head.weight")


def _read_tensor(headers: Mapping[str, Mapping[str, StoredTensor]], key: str, folder: Path) -> Tensor:
    """Read one tensor at a time, because all tensors of a file stay in memory until the file is closed."""
    if key not in headers:
        raise ValueError(f"weights: {folder} has no tensor {key}; download or save the model again")
    (tensor,) = hf_folder.read_tensors(headers[key]).values()
    return tensor


def _refuse(place: str, value: Tensor, parameter: Tensor) -> NoReturn:
    raise ValueError(f"weights: {place} has shape {tuple(value.shape)}, but config.json gives {tuple(parameter.shape)}")


def _fill(parameter: Tensor, value: Tensor, place: str) -> None:
    if parameter.shape != value.shape:
        _refuse(place, value, parameter)
    if not bool(value.isfinite().all()):
        raise ValueError(f"weights: {place} has infinite or NaN weights; download or save the model again")
    parameter.copy_(value)


@torch.no_grad()
def named_weights(decoder: Decoder, head: nn.Linear | None) -> Iterator[tuple[str, Tensor]]:
    """The weights with their Hugging Face names, as views. LoRA additions are left out."""
    shape = decoder.shape
    for name, theirs, transposed in names(shape, base_parameters(decoder)):
        value = decoder.get_parameter(name).detach()
        parts = [value]
        if len(theirs) > 1:
            parts = list(value.split(heights(shape, name.split(".")[-2], len(value))))
        for key, part in zip(theirs, parts, strict=True):
            yield body(shape) + key, part.T if transposed else part
    if head is not None:
        yield "lm_head.weight", head.weight.detach()


@torch.no_grad()
def save(folder: Path, decoder: Decoder, head: nn.Linear | None, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors in `dtype`, for `AutoModelForCausalLM.from_pretrained`."""
    shape = decoder.shape
    tensors = {name: x.to(dtype).cpu().contiguous().clone() for name, x in named_weights(decoder, head)}
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(shape) | {"dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
