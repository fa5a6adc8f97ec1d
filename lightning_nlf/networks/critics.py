"""Value, Q and reward networks for token sequences, with a decoder of their own or as a head on the policy's trunk."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nlf.language.shape import DecoderShape
from lightning_nlf.networks.base import Policy, QValue, Reward, Value
from lightning_nlf.networks.transformer import Transformer
from lightning_nlf.numbers import BelowOne, Count


def zero_head(width: int, outputs: int = 1) -> nn.Linear:
    head = nn.Linear(width, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def reward_head(width: int) -> nn.Linear:
    """Linear head with weights N(0, 1/(d + 1)) and bias 0, as in the code for https://arxiv.org/abs/1909.08593."""
    head = zero_head(width)
    nn.init.normal_(head.weight, std=1 / math.sqrt(width + 1))
    return head


def number(head: nn.Linear, features: Tensor) -> Tensor:
    """Apply a head with one output: (…, d) → (…). Uses float32, because small differences between rewards matter."""
    with torch.autocast(features.device.type, enabled=False):
        return head(features.float())[..., 0]


def of_tokens(head: nn.Linear, features: Tensor, tokens: Tensor) -> Tensor:
    """Outputs of a head at the given tokens: features (…, d), tokens (…) → (…), float32."""
    return head(features).float().gather(-1, tokens[..., None].long())[..., 0]


class TransformerNumber(Transformer):
    """Base of networks that have a decoder of their own and give a scalar for each prefix of tokens."""

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
    """Value network with a decoder of its own: V of each prefix of tokens. V is initially 0."""


class ValueHead(Value):
    """Value head on the policy's trunk, for features (…, width). V is initially 0.

    Args: width: number of features; 0 means the policy's number.
    """

    on_policy = True

    def __init__(self, width: Count = 0, weights: str | None = None) -> None:
        super().__init__()
        self.weights = weights
        if width:
            self._make(width)

    def join(self, policy: Policy) -> None:
        if not hasattr(self, "head"):
            self._make(policy.width)

    def _make(self, width: int) -> None:
        self.head = zero_head(width)
        self.load_weights(self.weights)

    def arguments(self) -> dict[str, Any]:
        return {"width": self.head.in_features}

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        """obs: the policy's features (…, width) → (…)"""
        return number(self.head, obs)


class TransformerQValue(Transformer, QValue):
    """Q network with a decoder of its own: Q of every next token. Q is initially 0."""

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
    """Q head on the policy's trunk, for features (…, width): Q of every next token. Q is initially 0."""

    on_policy = True

    def __init__(self, width: int, vocabulary: int, weights: str | None = None) -> None:
        super().__init__()
        self.head = zero_head(width, vocabulary)
        self.load_weights(weights)

    def forward(self, obs: Tensor, actions: Tensor, where: Tensor | None = None) -> Tensor:
        """obs: the policy's features (…, width); actions (…): the next tokens → (…)"""
        return of_tokens(self.head, obs, actions)


class TransformerReward(TransformerNumber, Reward):
    """Reward network for replies, with a decoder of its own."""

    new_head = staticmethod(reward_head)
