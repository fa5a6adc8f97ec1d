"""GRU networks over token ids, for tasks with a small vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from lightning_nlf.networks.base import Policy, Reward, Value
from lightning_nlf.numbers import Count, Size


class GRUPolicy(Policy):
    """GRU policy over `vocabulary` token ids. A `vocabulary` of 0 is set to the size in the run's data."""

    def __init__(self, vocabulary: Count = 0, width: Size = 64, weights: str | None = None) -> None:
        super().__init__()
        self.sized(vocabulary=vocabulary)
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
        # `lengths` exclude the padding on the right.
        last = outputs[torch.arange(len(ids), device=ids.device), (lengths - 1).clamp(min=0)][None]
        if state is not None:
            last = torch.where((lengths > 0)[None, :, None], last, state)
        return self.head(last[0]).float(), last.contiguous()

    def rows_of(self, state: Any, index: Tensor) -> Any:
        return state[:, index].contiguous()

    def with_rows(self, state: Any, index: Tensor, part: Any) -> Any:
        return state.index_copy(1, index, part)


class GRUValue(Value):
    """GRU value network: V of each prefix of tokens."""

    def __init__(self, vocabulary: Count = 0, width: Size = 64, weights: str | None = None) -> None:
        super().__init__()
        self.sized(vocabulary=vocabulary)
        self.vocabulary = vocabulary
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 1)
        self.load_weights(weights)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        hidden = self.rnn(self.embed(obs))[0]
        return self.head(hidden if where is None else hidden[where]).squeeze(-1)


class GRUReward(Reward):
    """GRU reward network for each prefix of tokens. The initial weights of the head have std 1/√(width + 1)."""

    def __init__(self, vocabulary: Count = 0, width: Size = 64, weights: str | None = None) -> None:
        super().__init__()
        self.sized(vocabulary=vocabulary)
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
