"""The next token by any causal language model of transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.networks.base import Policy
from lightning_nlf.networks.categorical import TokenDistribution
from lightning_nlf.networks.hf_generation import write_generation
from lightning_nlf.networks.hf_memory import Memory
from lightning_nlf.networks.hf_model import HuggingFace, empty_cache
from lightning_nlf.networks.hf_probe import refuse_other_distances, refused_if_it_fails
from lightning_nlf.networks.hf_scores import is_direct, scores_of
from lightning_nlf.networks.lora import LoRA, WithoutAdapter
from lightning_nlf.networks.transformer import refuse_strangers
from lightning_nlf.numbers import BelowOne, Positive


class HuggingFacePolicy(HuggingFace, Policy):
    """The next token's distribution by `AutoModelForCausalLM`.

    A model is tried when it is built: a few tokens read in turns must get the scores of the whole row. What lies beyond
    a sliding window of more than 64 tokens is not tried. Recurrent models (mamba, lfm2, qwen3_next, …) are refused.

    Args:
        temperature: what scores are divided by, in sampling and in learning alike.

    Raises:
        ValueError: scores that are made of more than the last hidden states, or that differ where rows are read in
            turns; a model that keeps no keys and values.
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
        self.temperature = temperature
        with refused_if_it_fails(self.bare.config):
            self.direct = is_direct(self.bare)
        self.load_weights(weights)
        with refused_if_it_fails(self.bare.config, "in turns, by the keys and values of every token"):
            refuse_other_distances(self)

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return self.states(obs, where)

    def distribution(self, features: Tensor) -> TokenDistribution:
        return TokenDistribution(self._scores(features))

    def _scores(self, features: Tensor) -> Tensor:
        scores = scores_of(self.bare, features, self.direct).float()
        return scores if self.temperature == 1 else scores / self.temperature

    def read(self, ids: Tensor, lengths: Tensor, state: Any = None, room: int = 0) -> tuple[Tensor, Memory]:
        rows, width = ids.shape
        state = Memory.empty(empty_cache(), lengths) if state is None else state
        if room or width > 1:  # not of every token that was sampled
            self.refuse_length(int((state.lengths + lengths).max()) + max(room - 1, 0))
            refuse_strangers(ids, self.vocabulary)
        state = state.closed(lengths)
        steps = torch.arange(width, device=ids.device)
        used = torch.cat([state.used, (steps < lengths[:, None]).long()], 1)
        positions = state.lengths[:, None] + steps.minimum((lengths - 1).clamp(min=0)[:, None])
        states = self.run(ids, used, positions, state.cache)
        last = states[torch.arange(rows, device=ids.device), (lengths - 1).clamp(min=0)]
        return self._scores(last), Memory(state.cache, used, state.lengths + lengths)

    def rows_of(self, state: Any, index: Tensor) -> Memory:
        return state.rows_of(index)

    def with_rows(self, state: Any, index: Tensor, part: Any) -> Memory:
        return state.with_rows(index, part)

    def frozen(self) -> Policy:
        return WithoutAdapter(self, self.model) if self.adapted else super().frozen()

    def export(self, folder: str | Path) -> None:
        """Write the model, LoRA's additions added in, for `AutoModelForCausalLM.from_pretrained`."""
        model = copy.deepcopy(self.model).merge_and_unload() if self.adapted else self.model
        model.save_pretrained(folder)
        write_generation(Path(folder), self.generation)
