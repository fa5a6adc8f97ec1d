"""Values and rewards of token sequences: on a decoder of their own, or a head on the policy's."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_nlf.language.shape import DecoderShape
from lightning_nlf.networks.base import QValue, Reward, Value
from lightning_nlf.networks.transformer import Transformer
from lightning_nlf.numbers import BelowOne


def zero_head(width: int, outputs: int = 1) -> nn.Linear:
    head = nn.Linear(width, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def reward_head(width: int) -> nn.Linear:
    """Normal with std 1/√(d + 1) and without bias at first: appendix A of https://arxiv.org/abs/1909.08593's code."""
    head = zero_head(width)
    nn.init.normal_(head.weight, std=1 / math.sqrt(width + 1))
    return head


def number(head: nn.Linear, features: Tensor) -> Tensor:
    """(…, d) → (…), in float32: a thousandth of a reward counts."""
    with torch.autocast(features.device.type, enabled=False):
        return head(features.float())[..., 0]


def of_tokens(head: nn.Linear, features: Tensor, tokens: Tensor) -> Tensor:
    """features (…, d), tokens (…) → (…), float32: what the head says of each of these tokens."""
    return head(features).float().gather(-1, tokens[..., None].long())[..., 0]


class TransformerNumber(Transformer):
    """A number of the tokens so far, on a decoder of its own."""

    new_head: Callable[[int], nn.Linear] = staticmethod(zero_head)

    def __init__(
        self,
        shape: DecoderShape | None = None,
        weights: str | None = None,
        dropout: BelowOne = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(shape, weights, dropout, checkpoint_activations)
        self.head = self.new_head(self.decoder.shape.width)
        self.load_weights(weights)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return number(self.head, self.states(obs, where))


class TransformerValue(TransformerNumber, Value):
    """V of the tokens so far, on a decoder of its own; 0 at first."""


class ValueHead(Value):
    """V on the policy's own trunk, from its features (…, width); 0 at first."""

    on_policy = True

    def __init__(self, width: int, weights: str | None = None) -> None:
        super().__init__()
        self.head = zero_head(width)
        self.load_weights(weights)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        """obs: the policy's features (…, width) → (…)"""
        return number(self.head, obs)


class TransformerQValue(Transformer, QValue):
    """Q of every token behind the tokens so far, on a decoder of its own; 0 at first."""

    def __init__(
        self,
        shape: DecoderShape | None = None,
        weights: str | None = None,
        dropout: BelowOne = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(shape, weights, dropout, checkpoint_activations)
        self.head = zero_head(self.decoder.shape.width, self.decoder.shape.vocabulary)
        self.load_weights(weights)

    def forward(self, obs: Tensor, actions: Tensor, where: Tensor | None = None) -> Tensor:
        return of_tokens(self.head, self.states(obs, where), actions if where is None else actions[where])


class QHead(QValue):
    """Q of every token on the policy's own trunk, from its features (…, width); 0 at first."""

    on_policy = True

    def __init__(self, width: int, vocabulary: int, weights: str | None = None) -> None:
        super().__init__()
        self.head = zero_head(width, vocabulary)
        self.load_weights(weights)

    def forward(self, obs: Tensor, actions: Tensor, where: Tensor | None = None) -> Tensor:
        """obs: the policy's features (…, width); actions (…): the tokens behind them → (…)"""
        return of_tokens(self.head, obs, actions)


class TransformerReward(TransformerNumber, Reward):
    """What a reply is worth, on a decoder of its own."""

    new_head = staticmethod(reward_head)
