"""The next token by any causal language model of transformers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nlf.networks.base import Policy
from lightning_nlf.networks.categorical import TokenDistribution
from lightning_nlf.networks.hf_model import HuggingFace, empty_cache
from lightning_nlf.networks.hf_scores import is_direct, scores_of
from lightning_nlf.networks.lora import LoRA, WithoutAdapter
from lightning_nlf.networks.transformer import refuse_strangers
from lightning_nlf.numbers import BelowOne, Positive


@dataclass
class Read:
    """What has been read: the model's own cache, which of its columns each row uses (B, C), and the rows' lengths."""

    cache: Any
    used: Tensor
    lengths: Tensor


class HuggingFacePolicy(HuggingFace, Policy):
    """The next token's distribution by `AutoModelForCausalLM`.

    Of a model with a sliding window: where rows of one batch have read different numbers of tokens, a row's window
    counts the others' columns too; keep the context within the window.

    Args:
        temperature: what scores are divided by, in sampling and in learning alike.

    Raises:
        ValueError: scores that are made of more than the last hidden states.
    """

    auto = "AutoModelForCausalLM"

    def __init__(
        self,
        weights: str | None = None,
        temperature: Positive = 1.0,
        lora: LoRA | None = None,
        config: dict[str, Any] | None = None,
        dropout: BelowOne = 0.0,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, must be above 0; for the likeliest token: deterministic")
        super().__init__(weights, lora, config, dropout)
        self.temperature, self.direct = temperature, is_direct(self.bare)
        self.load_weights(weights)

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return self.states(obs, where)

    def distribution(self, features: Tensor) -> TokenDistribution:
        return TokenDistribution(self._scores(features))

    def _scores(self, features: Tensor) -> Tensor:
        scores = scores_of(self.bare, features, self.direct).float()
        return scores if self.temperature == 1 else scores / self.temperature

    def read(self, ids: Tensor, lengths: Tensor, state: Any = None, room: int = 0) -> tuple[Tensor, Read]:
        rows, width = ids.shape
        if state is None:
            none = torch.zeros(rows, 0, dtype=torch.long, device=ids.device)
            state = Read(empty_cache(), none, torch.zeros_like(lengths))
        if room or width > 1:  # not of every token that was sampled
            self.refuse_length(int((state.lengths + lengths).max()) + max(room - 1, 0))
            refuse_strangers(ids, self.vocabulary)
        steps = torch.arange(width, device=ids.device)
        used = torch.cat([state.used, (steps < lengths[:, None]).long()], 1)
        positions = state.lengths[:, None] + steps.minimum((lengths - 1).clamp(min=0)[:, None])
        states, cache = self.run(ids, used, positions, state.cache)
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


def _shallow(cache: Any) -> Any:
    """Another cache with the same tensors: to take another's place, not to be written into."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin
