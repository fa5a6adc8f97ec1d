"""Networks over token ids: small recurrent ones, for tasks with a small vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from lightning_nlf.networks.base import Policy, Reward, Value
from lightning_nlf.numbers import Size


class GRUPolicy(Policy):
    """The next token's distribution over `vocabulary` ids."""

    def __init__(self, vocabulary: Size, width: Size = 64, weights: str | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)
        self.load_weights(weights)

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        hidden = self.rnn(self.embed(obs))[0]
        return hidden if where is None else hidden[where]

    def distribution(self, features: Tensor) -> Distribution:
        return Categorical(logits=self.head(features).float(), validate_args=False)

    def read(self, ids: Tensor, lengths: Tensor, state: Any = None, room: int = 0) -> tuple[Tensor, Any]:
        outputs, _ = self.rnn(self.embed(ids), state)
        # padding on the right is never read
        last = outputs[torch.arange(len(ids), device=ids.device), (lengths - 1).clamp(min=0)][None]
        if state is not None:
            last = torch.where((lengths > 0)[None, :, None], last, state)
        return self.head(last[0]).float(), last.contiguous()

    def rows_of(self, state: Any, index: Tensor) -> Any:
        return state[:, index].contiguous()

    def with_rows(self, state: Any, index: Tensor, part: Any) -> Any:
        return state.index_copy(1, index, part)


class GRUValue(Value):
    """V of the tokens so far."""

    def __init__(self, vocabulary: Size, width: Size = 64, weights: str | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 1)
        self.load_weights(weights)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        hidden = self.rnn(self.embed(obs))[0]
        return self.head(hidden if where is None else hidden[where]).squeeze(-1)


class GRUReward(Reward):
    """What the tokens so far are worth. Its head starts small: normal, of standard deviation 1/√(width + 1)."""

    def __init__(self, vocabulary: Size, width: Size = 64, weights: str | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 1)
        nn.init.normal_(self.head.weight, std=(width + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)
        self.load_weights(weights)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        hidden = self.rnn(self.embed(obs))[0]
        return self.head(hidden if where is None else hidden[where]).squeeze(-1)
