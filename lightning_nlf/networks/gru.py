"""Networks over token ids: small recurrent ones, for tasks with a small vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from lightning_nlf.networks.base import Policy, Value


class GRUPolicy(Policy):
    """The next token's distribution over `vocabulary` ids."""

    def __init__(self, vocabulary: int, width: int = 64, weights: str | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)
        self.load_weights(weights)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Distribution:
        hidden = self.rnn(self.embed(obs))[0]
        return Categorical(logits=self.head(hidden if where is None else hidden[where]).float(), validate_args=False)

    def read(self, ids: Tensor, lengths: Tensor, state: Any = None) -> tuple[Distribution, Any]:
        outputs, _ = self.rnn(self.embed(ids), state)
        last = outputs[torch.arange(len(ids), device=ids.device), lengths - 1]  # padding on the right is never read
        return Categorical(logits=self.head(last).float(), validate_args=False), last[None].contiguous()

    def keep(self, running: Tensor, following: Any, state: Any) -> Any:
        return torch.where(running[None, :, None], following, state)


class GRUValue(Value):
    """V of the tokens so far."""

    def __init__(self, vocabulary: int, width: int = 64, weights: str | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 1)
        self.load_weights(weights)

    def forward(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        hidden = self.rnn(self.embed(obs))[0]
        return self.head(hidden if where is None else hidden[where]).squeeze(-1)
