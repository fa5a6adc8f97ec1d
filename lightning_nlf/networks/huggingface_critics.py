"""Value and reward networks for token sequences, on any causal model of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_nlf.language.hf_probe import refuse_looking_ahead, refused_if_it_fails
from lightning_nlf.networks.base import Reward, Value
from lightning_nlf.networks.critics import number, reward_head, zero_head
from lightning_nlf.networks.huggingface import HuggingFace
from lightning_nlf.networks.lora import LoRA
from lightning_nlf.numbers import BelowOne


class HuggingFaceNumber(HuggingFace):
    """Base of networks that have an `AutoModel` of their own and give a scalar for each prefix of tokens."""

    new_head: Callable[[int], nn.Linear] = staticmethod(zero_head)

    def __init__(
        self,
        weights: str | None = None,
        lora: LoRA | None = None,
        config: dict[str, Any] | None = None,
        dropout: BelowOne = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(weights, lora, config, dropout, checkpoint_activations)
        self.head = self.new_head(self.bare.config.hidden_size)
        self.load_weights(weights)
        with refused_if_it_fails(self.bare.config):
            refuse_looking_ahead(self)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return number(self.head, self.states(obs, where))


class HuggingFaceValue(HuggingFaceNumber, Value):
    """Value network with an `AutoModel` of its own: V of each prefix of tokens. V is initially 0."""


class HuggingFaceReward(HuggingFaceNumber, Reward):
    """Reward network for replies, with an `AutoModel` of its own.

    With `lora`, only the adapter and the head are trained.
    """

    new_head = staticmethod(reward_head)
