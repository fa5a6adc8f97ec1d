"""Build a transformers model from a folder or a config. No code of the folder runs.

transformers is imported when the first model is built: `pip install lightning_nlf[text]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightning_nlf.language import hf_folder


def built(auto: str, config: dict[str, Any] | None, folder: Path | None, dropout: float) -> Any:
    """Build a float32 transformers model, from a model folder or from a config with random weights.

    Raises:
        ValueError: transformers is not installed; neither folder nor config are given; the folder or config is invalid.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError("transformers is not installed; run pip install lightning_nlf[text]") from None
    kind = getattr(transformers, auto)
    if folder is not None:
        return _load(transformers, kind, folder, dropout)
    if config is None:
        raise ValueError("weights: set a folder in the Hugging Face layout or an id on the hub; or set `config`")
    if not isinstance(config.get("model_type"), str):
        raise ValueError("config: model_type is missing; set it to the architecture, such as llama")
    hf_folder.refuse_sizes(config, "config")
    options = {key: value for key, value in config.items() if key not in ("model_type", "dtype")}
    with hf_folder.telling("config"):
        model_config = with_dropout(transformers.AutoConfig.for_model(config["model_type"], **options), dropout)
        hf_folder.refuse_memory(lambda: kind.from_config(model_config, trust_remote_code=False), "config")
    return kind.from_config(model_config, trust_remote_code=False)


def _load(transformers: Any, kind: Any, folder: Path, dropout: float) -> Any:
    where = f"weights: {folder / hf_folder.CONFIG}"
    hf_folder.checked(folder)
    with hf_folder.telling(where), _no_code(folder):
        config = with_dropout(transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False), dropout)
        hf_folder.refuse_memory(lambda: kind.from_config(config, trust_remote_code=False), where)
    how = {"use_safetensors": True}  # a pickle is never read
    how |= {"ignore_mismatched_sizes": True, "output_loading_info": True}  # mismatches are reported below, in one line
    with hf_folder.telling(f"weights: {folder}"), _silence(transformers):
        model, report = kind.from_pretrained(folder, config=config, dtype=torch.float32, trust_remote_code=False, **how)
    for name, file_shape, config_shape in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"weights: {folder}: tensor {name} has shape {tuple(file_shape)}, but config.json gives "
            f"{tuple(config_shape)}; download or save the model again"
        )
    for name in sorted(report["missing_keys"]):
        raise ValueError(f"weights: {folder} has no tensor {name}, which config.json requires; download it again")
    hf_folder.refuse_not_finite(dict(model.named_parameters()), folder)
    return model.train()


@contextmanager
def _no_code(folder: Path) -> Iterator[None]:
    """Context manager that refuses a model with code of its own.  Raises ValueError: the folder has such code."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"weights: {folder} requires code of its own (auto_map in its config.json), which is never run; use a "
            "model that is part of transformers"
        ) from None


@contextmanager
def _silence(transformers: Any) -> Iterator[None]:
    """Context manager that hides the loading reports and progress bars of transformers."""
    logs = transformers.logging
    level, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bar:
            logs.enable_progress_bar()


def with_dropout(config: Any, dropout: float) -> Any:
    """Set every dropout rate in the config to this value: `resid_pdrop`, `attention_dropout`, …"""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):  # nested config, such as the text part of a multimodal model
            with_dropout(value, dropout)
        elif "drop" in name and isinstance(value, int | float) and value != dropout:
            setattr(config, name, dropout)
    return config


def recompute_layers(model: Any) -> None:
    """Activation checkpointing: keep only the input of each layer, and recompute the layer in the backward pass.

    Raises:
        ValueError: the architecture does not support it.
    """
    if not model.supports_gradient_checkpointing:
        raise ValueError(
            f"checkpoint_activations: transformers does not support it for {model.config.model_type}; set it to false"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def empty_cache() -> Any:
    """A cache that keeps every column. A cache for the model's config would drop columns beyond a sliding window."""
    from transformers import DynamicCache

    return DynamicCache()
