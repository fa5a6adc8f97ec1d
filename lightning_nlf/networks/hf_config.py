"""config.json of GPT-2, Llama, Qwen2 and Qwen3, and the shape of our decoder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning_nlf.networks import hf_folder
from lightning_nlf.networks.decoder import DecoderShape

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What a config may say, and this decoder does not do; any other value of these is refused.
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
    """The shape that config.json tells of.

    Raises:
        ValueError: there is none, or an architecture that this decoder is not.
    """
    config = hf_folder.read_json(folder / hf_folder.CONFIG)
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        raise ValueError(
            f"weights: {folder} is a {family}, and this decoder is one of {', '.join(ARCHITECTURES)}: "
            "use lightning_nlf.networks.HuggingFacePolicy"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"weights: {folder / hf_folder.CONFIG}: rope_parameters: must be an object")
    strange = {name: config[name] for name, known in PLAIN.items() if name in config and config[name] not in known}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        strange["rope_parameters"] = rope
    if strange:
        raise ValueError(f"weights: {folder} has {strange}: use lightning_nlf.networks.HuggingFacePolicy")
    _refuse_types(config, rope, folder)
    try:
        return _shape(config, rope, family)
    except KeyError as error:
        raise ValueError(f"weights: {folder / hf_folder.CONFIG}: {error.args[0]}: missing") from None
    except ValueError as error:
        raise ValueError(f"weights: {folder / hf_folder.CONFIG}: {error}") from None


def _shape(config: dict[str, Any], rope: dict[str, Any], family: Any) -> DecoderShape:
    if family == "gpt2":
        return DecoderShape(
            vocabulary=config["vocab_size"],
            layers=config["n_layer"],
            heads=config["n_head"],
            width=config["n_embd"],
            context=config["n_positions"],
            family="gpt2",
            hidden=config.get("n_inner") or 0,
            tied=config.get("tie_word_embeddings", True),
            eps=config.get("layer_norm_epsilon", 1e-5),
        )
    return DecoderShape(
        vocabulary=config["vocab_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        width=config["hidden_size"],
        context=config["max_position_embeddings"],
        family=family,
        kv_heads=config.get("num_key_value_heads") or 0,
        head_width=config.get("head_dim") or (128 if family == "qwen3" else 0),
        hidden=config["intermediate_size"],
        tied=config.get("tie_word_embeddings", False),
        rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        eps=config.get("rms_norm_eps", 1e-6),
    )


def _refuse_types(config: dict[str, Any], rope: dict[str, Any], folder: Path) -> None:
    """Raises ValueError: a knob that is no positive number, or is no bool."""
    for name in ("rope_theta", "rms_norm_eps", "layer_norm_epsilon"):
        value = config.get(name, rope.get(name, 1.0))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"weights: {folder / hf_folder.CONFIG}: {name}: got {value!r}, must be a number above 0")
    for name in hf_folder.PER_LAYER:
        if isinstance(config.get(name), list):
            raise ValueError(
                f"weights: {folder / hf_folder.CONFIG}: {name}: must be the same in all layers: one number"
            )
    tied = config.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise ValueError(
            f"weights: {folder / hf_folder.CONFIG}: tie_word_embeddings: got {tied!r}, must be true or false"
        )


def config_of(shape: DecoderShape) -> dict[str, Any]:
    """config.json."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[shape.family]],
        "model_type": shape.family,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    if shape.family == "gpt2":
        return config | {
            "n_layer": shape.layers,
            "n_head": shape.heads,
            "n_embd": shape.width,
            "n_positions": shape.context,
            "n_inner": shape.hidden,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": shape.eps,
        }
    return config | {
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "max_position_embeddings": shape.context,
        "hidden_act": "silu",
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,  # of transformers 4
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
    }
