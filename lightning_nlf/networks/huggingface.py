"""Any causal language model of transformers, with LoRA if wanted: slower than our own decoder, and more general.

transformers is imported when such a policy is built, and not before: `pip install lightning_nlf[text]`.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nlf.networks.base import Policy, checkpoint_at
from lightning_nlf.networks.categorical import TokenDistribution
from lightning_nlf.networks.hf_scores import is_direct, scores_of
from lightning_nlf.networks.lora import LoRA, WithoutAdapter, with_lora
from lightning_nlf.networks.transformer import refuse_strangers


@dataclass
class Read:
    """What has been read: the model's own cache, which of its columns each row uses (B, C), and the rows' lengths."""

    cache: Any
    used: Tensor
    lengths: Tensor


class HuggingFacePolicy(Policy):
    """The next token's distribution by `AutoModelForCausalLM`.

    Of a model with a sliding window: where rows of one batch have read different numbers of tokens, a row's window
    counts the others' columns too; keep the context within the window.

    Args:
        weights: a folder in Hugging Face layout or an id on the hub; or a checkpoint of ours.
        temperature: what scores are divided by, in sampling and in learning alike.
        lora: train additions of low rank, and nothing else.
        config: of the model, where no weights bring it: the content of config.json. Begins at random.
        dropout: in training, wherever the model has any; what its config says of it is not followed, as with dropout
            the policy that learns is not the one that acted.

    Raises:
        ValueError: transformers, or with `lora` peft, is not installed; neither weights nor config; no such model,
            or one whose scores are made of more than its last hidden states; a knob out of its range.
    """

    model: Any

    def __init__(
        self,
        weights: str | None = None,
        temperature: float = 1.0,
        lora: LoRA | None = None,
        config: dict[str, Any] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: got {dropout}, must be at least 0 and below 1")
        if not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, must be above 0; for the likeliest token: deterministic")
        self.temperature, self.adapted = temperature, lora is not None
        ours = weights is not None and (weights.endswith(".ckpt") or Path(weights).is_file())
        known = _config_in(weights) if ours and weights and config is None else config
        model = built(known, None if ours else weights, dropout)
        self.config = model.config.to_dict()
        self.vocabulary = model.config.vocab_size
        self.context = getattr(model.config, "max_position_embeddings", None)
        self.model = model if lora is None else with_lora(model, lora)
        self.direct = is_direct(model)
        self.load_weights(weights if ours else None)

    def arguments(self) -> dict[str, Any]:
        return {"config": self.config}

    @property
    def causal(self) -> Any:
        """The transformers model, LoRA's additions inside of it."""
        return self.model.get_base_model() if self.adapted else self.model

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        """The last hidden states."""
        asked = torch.ones_like(obs, dtype=torch.bool) if where is None else where
        steps = torch.arange(1, obs.shape[1] + 1, device=obs.device)
        lengths = (asked * steps).amax(1)  # what is behind the last one wanted is padding
        width = max(int(lengths.max()), 1)
        self._refuse_length(width)
        refuse_strangers(obs[:, :width], self.vocabulary)
        seen = (steps[:width] <= lengths[:, None]).long()
        states, _ = self._run(obs[:, :width], seen, (steps[:width] - 1).expand(len(obs), -1))
        return states if where is None else states[where[:, :width]]

    def distribution(self, features: Tensor) -> TokenDistribution:
        return TokenDistribution(self._scores(features))

    def _scores(self, features: Tensor) -> Tensor:
        scores = scores_of(self.causal, features, self.direct).float()
        return scores if self.temperature == 1 else scores / self.temperature

    def _run(self, ids: Tensor, seen: Tensor, positions: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """States (B, L, d) of new ids (B, L), and the cache; seen (B, C) and positions (B, L), cache for `read`."""
        model = self.causal.base_model
        placed = {"position_ids": positions} if "position_ids" in inspect.signature(model.forward).parameters else {}
        out = model(input_ids=ids, attention_mask=seen, past_key_values=cache, use_cache=cache is not None, **placed)
        return out.last_hidden_state, out.past_key_values

    def read(self, ids: Tensor, lengths: Tensor, state: Any = None, room: int = 0) -> tuple[Tensor, Read]:
        from transformers import DynamicCache

        rows, width = ids.shape
        if state is None:
            none = torch.zeros(rows, 0, dtype=torch.long, device=ids.device)
            state = Read(DynamicCache(), none, torch.zeros_like(lengths))
        if room or width > 1:  # not of every token that was sampled
            self._refuse_length(int((state.lengths + lengths).max()) + max(room - 1, 0))
            refuse_strangers(ids, self.vocabulary)
        steps = torch.arange(width, device=ids.device)
        used = torch.cat([state.used, (steps < lengths[:, None]).long()], 1)
        positions = state.lengths[:, None] + steps.minimum((lengths - 1).clamp(min=0)[:, None])
        states, cache = self._run(ids, used, positions, state.cache)
        last = states[torch.arange(rows, device=ids.device), (lengths - 1).clamp(min=0)]
        return self._scores(last), Read(cache, used, state.lengths + lengths)

    def rows_of(self, state: Any, index: Tensor) -> Read:
        cache = _shallow(state.cache)
        cache.batch_select_indices(index)
        return Read(cache, state.used[index], state.lengths[index])

    def with_rows(self, state: Any, index: Tensor, part: Any) -> Read:
        cache, more = _shallow(state.cache), part.used.shape[1] - state.used.shape[1]
        for layer, read_further in zip(cache.layers, part.cache.layers, strict=True):
            layer.keys = F.pad(layer.keys, (0, 0, 0, more)).index_copy(0, index, read_further.keys)
            layer.values = F.pad(layer.values, (0, 0, 0, more)).index_copy(0, index, read_further.values)
        used = F.pad(state.used, (0, more)).index_copy(0, index, part.used)
        return Read(cache, used, state.lengths.index_copy(0, index, part.lengths))

    def frozen(self) -> Policy:
        return WithoutAdapter(self, self.model) if self.adapted else super().frozen()

    def export(self, folder: str | Path) -> None:
        """Write the model, LoRA's additions added in, for `AutoModelForCausalLM.from_pretrained`."""
        model = copy.deepcopy(self.model).merge_and_unload() if self.adapted else self.model
        model.save_pretrained(folder)

    def _refuse_length(self, tokens: int) -> None:
        if self.context is not None and tokens > self.context:
            raise ValueError(f"weights: a row of {tokens} tokens is longer than the model's context of {self.context}")


def built(config: dict[str, Any] | None, weights: str | None, dropout: float) -> Any:
    """A transformers model, float32: from its weights, or at random from its config."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise ValueError("HuggingFacePolicy needs transformers: pip install lightning_nlf[text]") from None
    if weights is not None:
        try:
            found = with_dropout(AutoConfig.from_pretrained(weights), dropout)
            return AutoModelForCausalLM.from_pretrained(weights, config=found, dtype=torch.float32).train()
        except (OSError, ValueError) as error:
            raise ValueError(f"weights: transformers finds no model {weights}: {error}") from None
    if config is None:
        raise ValueError("weights: give a folder in Hugging Face layout or an id on the hub; or give a config")
    known = {key: value for key, value in config.items() if key not in ("model_type", "dtype")}
    found = AutoConfig.for_model(config["model_type"], **known)
    return AutoModelForCausalLM.from_config(with_dropout(found, dropout))


def with_dropout(config: Any, dropout: float) -> Any:
    """The config with this in the place of every dropout that it names: `resid_pdrop`, `attention_dropout`, …"""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):  # of a part, as of the text in a model that sees, too
            with_dropout(value, dropout)
        elif "drop" in name and isinstance(value, int | float) and value != dropout:
            setattr(config, name, dropout)
    return config


def _config_in(checkpoint: str) -> dict[str, Any]:
    spec = (checkpoint_at(checkpoint).get("hyper_parameters") or {}).get("policy") or {}
    config = spec.get("init_args", {}).get("config")
    if config is None:
        raise ValueError(f"config: {checkpoint} is of no HuggingFacePolicy, or does not say its config; give one")
    return config


def _shallow(cache: Any) -> Any:
    """Another cache with the same tensors: to take another's place, not to be written into."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin
