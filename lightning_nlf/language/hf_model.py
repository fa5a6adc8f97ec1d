"""Build a transformers model from its folder or from its config; no code of the folder is run.

transformers is imported when a model is built, and not before: `pip install lightning_nlf[text]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightning_nlf.language import hf_folder


def built(auto: str, config: dict[str, Any] | None, folder: Path | None, dropout: float) -> Any:
    """A transformers model, float32: from its folder, or at random from its config.

    Raises:
        ValueError: transformers is missing; neither folder nor config; a folder or a config that makes no model.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError("models of transformers need transformers: pip install lightning_nlf[text]") from None
    kind = getattr(transformers, auto)
    if folder is not None:
        return _loaded(transformers, kind, folder, dropout)
    if config is None:
        raise ValueError("weights: give a folder in Hugging Face layout or an id on the hub; or give a config")
    if not isinstance(config.get("model_type"), str):
        raise ValueError("config: model_type: missing; it names the architecture, such as llama")
    hf_folder.refuse_sizes(config, "config")
    known = {key: value for key, value in config.items() if key not in ("model_type", "dtype")}
    with hf_folder.telling("config"):
        made = with_dropout(transformers.AutoConfig.for_model(config["model_type"], **known), dropout)
        hf_folder.refuse_memory(lambda: kind.from_config(made, trust_remote_code=False), "config")
    return kind.from_config(made, trust_remote_code=False)


def _loaded(transformers: Any, kind: Any, folder: Path, dropout: float) -> Any:
    where = f"weights: {folder / hf_folder.CONFIG}"
    hf_folder.checked(folder)
    with hf_folder.telling(where), _no_code(folder):
        config = with_dropout(transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False), dropout)
        hf_folder.refuse_memory(lambda: kind.from_config(config, trust_remote_code=False), where)
    how = {"use_safetensors": True}  # a pickle is never read
    how |= {"ignore_mismatched_sizes": True, "output_loading_info": True}  # they are told below, in one line
    with hf_folder.telling(f"weights: {folder}"), _silence(transformers):
        model, report = kind.from_pretrained(folder, config=config, dtype=torch.float32, trust_remote_code=False, **how)
    for name, there, here in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"weights: {folder}: tensor {name} is {tuple(there)}, and config.json says {tuple(here)}: fetch or save "
            "the model again"
        )
    for name in sorted(report["missing_keys"]):
        raise ValueError(f"weights: {folder} has no tensor {name}, which its config.json asks for")
    hf_folder.refuse_not_finite(dict(model.named_parameters()), folder)
    return model.train()


@contextmanager
def _no_code(folder: Path) -> Iterator[None]:
    """Raises ValueError: the model would need code of the folder."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"weights: {folder} wants code of its own to be run (auto_map in its config.json), which is never done: "
            "take a model that transformers knows"
        ) from None


@contextmanager
def _silence(transformers: Any) -> Iterator[None]:
    """Without a report of what was loaded, and without bars that fill."""
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
    """The config with this in the place of every dropout that it names: `resid_pdrop`, `attention_dropout`, …"""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):  # of a part, as of the text in a model that sees, too
            with_dropout(value, dropout)
        elif "drop" in name and isinstance(value, int | float) and value != dropout:
            setattr(config, name, dropout)
    return config


def recompute_layers(model: Any) -> None:
    """Keep of each layer its input alone, and compute it again on the way back.

    Raises:
        ValueError: the architecture cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise ValueError(f"checkpoint_activations: a {model.config.model_type} of transformers cannot; leave it out")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def empty_cache() -> Any:
    """One that keeps every column; made by the config it would forget those of other rows beyond a window."""
    from transformers import DynamicCache

    return DynamicCache()
