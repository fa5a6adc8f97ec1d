"""Convert between config.json of GPT-2, Llama, Qwen2 or Qwen3 and the shape of our decoder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning_nlf.language import hf_folder
from lightning_nlf.language.shape import DecoderShape

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# Our names of the sizes → the names in config.json.
ALL = {"vocabulary": "vocab_size", "tied": "tie_word_embeddings"}
GPT2 = ALL | {
    "layers": "n_layer",
    "heads": "n_head",
    "width": "n_embd",
    "context": "n_positions",
    "hidden": "n_inner",
    "eps": "layer_norm_epsilon",
}
LLAMA = ALL | {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
    "eps": "rms_norm_eps",
    "rope_theta": "rope_theta",  # in transformers 4; later versions use rope_parameters
}
# The decoder supports these options only with these values. Other values are refused.
PLAIN = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
}


def shape_in(folder: Path) -> DecoderShape:
    """Read the shape of a decoder from config.json.

    Raises:
        ValueError: the file is missing, or the decoder does not support the architecture or an option.
    """
    config, where = hf_folder.read_json(folder / hf_folder.CONFIG), f"weights: {folder / hf_folder.CONFIG}"
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        raise ValueError(
            f"weights: {folder} is a {family}, but this decoder supports {', '.join(ARCHITECTURES)}; "
            "use lightning_nlf.networks.HuggingFacePolicy"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{where}: rope_parameters: must be a JSON object")
    strange = {name: config[name] for name, values in PLAIN.items() if name in config and config[name] not in values}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        strange["rope_parameters"] = rope
    if strange:
        raise ValueError(
            f"weights: {folder} has {strange}, which this decoder does not support; use "
            "lightning_nlf.networks.HuggingFacePolicy"
        )
    _refuse_types(config, rope, where)
    try:
        return _shape(config, rope, family)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _shape(config: dict[str, Any], rope: dict[str, Any], family: Any) -> DecoderShape:
    values: dict[str, Any] = {"tied": True, "hidden": 0, "eps": 1e-5}
    names = GPT2
    if family != "gpt2":
        values = {"tied": False, "kv_heads": 0, "head_width": 128 if family == "qwen3" else 0, "eps": 1e-6}
        names, config = LLAMA, {"rope_theta": 10000.0} | config | {k: x for k, x in rope.items() if k == "rope_theta"}
    for ours, theirs in names.items():
        if config.get(theirs) is not None:
            values[ours] = config[theirs]
        elif ours not in values:
            raise ValueError(f"{theirs}: missing")
    return DecoderShape(**values, family=family)


def _refuse_types(config: dict[str, Any], rope: dict[str, Any], where: str) -> None:
    """Check the types of options. Raises ValueError: an option is not a positive number, or not a bool."""
    for name in ("rope_theta", "rms_norm_eps", "layer_norm_epsilon"):
        value = config.get(name, rope.get(name, 1.0))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{where}: {name}: got {value!r}, must be a number above 0")
    for name in hf_folder.PER_LAYER:
        if isinstance(config.get(name), list):
            raise ValueError(f"{where}: {name}: must be one number, the same for all layers")
    tied = config.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise ValueError(f"{where}: tie_word_embeddings: got {tied!r}, must be true or false")


def config_of(shape: DecoderShape) -> dict[str, Any]:
    """The content of config.json for a shape."""
    gpt2 = shape.family == "gpt2"
    names = GPT2 if gpt2 else LLAMA
    config = {
        "architectures": [ARCHITECTURES[shape.family]],
        "model_type": shape.family,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
        **{theirs: getattr(shape, ours) for ours, theirs in names.items()},
    }
    if gpt2:
        return config | {"activation_function": "gelu_new"}
    rope = {"rope_theta": shape.rope_theta, "rope_type": "default"}
    return config | {"hidden_act": "silu", "rope_parameters": rope}
