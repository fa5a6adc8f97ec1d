"""Any model of transformers in a network, with LoRA if wanted: slower than our own decoder, and more general.

transformers is imported when such a network is built, and not before: `pip install lightning_nlf[text]`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.networks import hf_folder, hf_layout
from lightning_nlf.networks.base import Network, checkpoint_at, under
from lightning_nlf.networks.hf_generation import generation_in
from lightning_nlf.networks.lora import LoRA, with_lora
from lightning_nlf.networks.transformer import refuse_strangers


class HuggingFace(Network):
    """A network with a model of transformers, which is given by its config or comes with its weights.

    Args:
        weights: a folder in Hugging Face layout or an id on the hub; or a checkpoint of ours.
        lora: train additions of low rank, and of the model nothing else.
        config: of the model, where no weights bring it: the content of config.json. Begins at random.
        dropout: in training, wherever the model has any; what its config says of it is not followed, as with dropout
            the policy that learns is not the one that acted.

    Raises:
        ValueError: transformers, or with `lora` peft, is not installed; neither weights nor config; no such model;
            a knob out of its range.
    """

    auto = "AutoModel"  # what of transformers builds it
    model: Any
    vocabulary: int

    def __init__(
        self,
        weights: str | None = None,
        lora: LoRA | None = None,
        config: dict[str, Any] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: got {dropout}, must be at least 0 and below 1")
        if is_checkpoint(weights) and config is None:
            config = self._config_in(str(weights))
        folder = None if is_checkpoint(weights) else hf_layout.folder_of(weights)
        if weights is not None and folder is None and not is_checkpoint(weights):
            raise ValueError(f"weights: there is no folder {weights}")
        self.generation = {} if folder is None else generation_in(folder)
        model = built(self.auto, config, folder, dropout)
        self.config = model.config.to_dict()
        text = model.config.get_text_config()  # of a model that sees, too
        self.vocabulary = text.vocab_size
        self.context = getattr(text, "max_position_embeddings", None)
        self.adapted = lora is not None
        self.model = model if lora is None else with_lora(model, lora)

    def load_weights(self, weights: str | None) -> None:
        """As of `Network`; what is in Hugging Face layout came with the model."""
        super().load_weights(weights if is_checkpoint(weights) else None)

    def own_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint without this role gives the body of its policy, below a fresh head; without LoRA both."""
        own, body = super().own_weights(state), under(f"policy.model.{self.bare.base_model_prefix}", state)
        if own or not body:
            return own
        fresh = {name: x for name, x in self.state_dict().items() if not name.startswith("model.")}
        return fresh | {f"model.{name}": x for name, x in body.items()}

    def arguments(self) -> dict[str, Any]:
        return {"config": self.config}

    def _config_in(self, checkpoint: str) -> dict[str, Any]:
        """Of the network of this role, or of the policy that it would start from."""
        networks = checkpoint_at(checkpoint).get("hyper_parameters") or {}
        config = (networks.get(self.role) or networks.get("policy") or {}).get("init_args", {}).get("config")
        if config is None:
            raise ValueError(
                f"config: {checkpoint} is of no model of transformers, or does not say its config; give one"
            )
        return config

    @property
    def bare(self) -> Any:
        """The transformers model, LoRA's additions inside of it."""
        return self.model.get_base_model() if self.adapted else self.model

    def states(self, obs: Tensor, where: Tensor | None) -> Tensor:
        """obs (B, T) → (B, T, d), or (N, d) over the True steps of `where`. Nothing behind a row's last one is read.

        Raises:
            ValueError: a row longer than the context, or a token outside of the vocabulary.
        """
        asked = torch.ones_like(obs, dtype=torch.bool) if where is None else where
        steps = torch.arange(1, obs.shape[1] + 1, device=obs.device)
        lengths = (asked * steps).amax(1)  # what is behind the last one wanted is padding
        width = max(int(lengths.max()), 1)
        self.refuse_length(width)
        refuse_strangers(obs[:, :width], self.vocabulary)
        seen = (steps[:width] <= lengths[:, None]).long()
        states = self.run(obs[:, :width], seen, (steps[:width] - 1).expand(len(obs), -1))
        return states if where is None else states[where[:, :width]]

    def run(self, ids: Tensor, seen: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        """States (B, L, d) of new ids (B, L); seen (B, C) and positions (B, L), `cache` for `read`, which grows."""
        body = self.bare.base_model
        takes = inspect.signature(body.forward).parameters
        placed = {"position_ids": positions} if "position_ids" in takes else {}
        if cache is not None:
            placed["cache" if "cache" in takes else "past_key_values"] = cache  # the later name, or the earlier
        return body(input_ids=ids, attention_mask=seen, use_cache=cache is not None, **placed).last_hidden_state

    def refuse_length(self, tokens: int) -> None:
        if self.context is not None and tokens > self.context:
            raise ValueError(f"weights: a row of {tokens} tokens is longer than the model's context of {self.context}")


def is_checkpoint(weights: str | None) -> bool:
    """Whether `weights` are a checkpoint of ours, and nothing in Hugging Face layout."""
    return weights is not None and (weights.endswith(".ckpt") or Path(weights).is_file())


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


def empty_cache() -> Any:
    """One that keeps every column; made by the config it would forget those of other rows beyond a window."""
    from transformers import DynamicCache

    return DynamicCache()
