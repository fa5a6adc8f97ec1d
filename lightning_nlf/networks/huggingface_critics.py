"""Values and rewards of token sequences on any model of transformers that reads from left to right."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_nlf.networks.base import Reward, Value
from lightning_nlf.networks.critics import number, reward_head, zero_head
from lightning_nlf.networks.hf_model import HuggingFace
from lightning_nlf.networks.lora import LoRA
from lightning_nlf.numbers import BelowOne


class HuggingFaceValue(HuggingFace, Value):
    """V of the tokens so far, on an `AutoModel` of its own; 0 at first."""

    def __init__(
        self,
        weights: str | None = None,
        lora: LoRA | None = None,
        config: dict[str, Any] | None = None,
        dropout: BelowOne = 0.0,
    ) -> None:
        super().__init__(weights, lora, config, dropout)
        self.head = zero_head(self.bare.config.hidden_size)
        self.load_weights(weights)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return number(self.head, self.states(obs, where))


class HuggingFaceReward(HuggingFace, Reward):
    """What a reply is worth, on an `AutoModel` of its own; with `lora` the additions and the head are trained."""

    def __init__(
        self,
        weights: str | None = None,
        lora: LoRA | None = None,
        config: dict[str, Any] | None = None,
        dropout: BelowOne = 0.0,
    ) -> None:
        super().__init__(weights, lora, config, dropout)
        self.head = reward_head(self.bare.config.hidden_size)
        self.load_weights(weights)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return number(self.head, self.states(obs, where))
