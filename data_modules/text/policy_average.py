"""Exponential moving average of the policy's weights, for use as critic or reviser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_nlf.batch import Replier
from lightning_nlf.numbers import Share


class PolicyAverage:
    """A `Replier` with an exponential moving average of the policy's weights: ā ← ā + rate · (θ − ā).

    The average starts as a copy of the policy at the first collection, and moves at every later collection. Only
    trained parameters are averaged (with LoRA only the adapters); all other parameters are shared with the policy.
    While the average replies, it temporarily replaces the policy's weights. Checkpoints contain the average.

    Args:
        rate: how fast the average moves. 0 keeps the weights of the start, 1 follows the policy exactly.

    Raises:
        ValueError: rate is outside [0, 1].
    """

    def __init__(self, rate: Share = 0.05) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: got {rate}, must be from 0 to 1")
        self.rate = rate
        self.average: dict[str, Tensor] = {}
        self._policy: nn.Module | None = None

    def bind(self, policy: Replier) -> None:
        """Set the policy that shares its parameters. If there is no average yet, start from the policy's weights."""
        self._policy = cast(nn.Module, policy)
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in self._trained()}

    @torch.no_grad()
    def follow(self, policy: Replier) -> None:
        """Move the average towards the policy's weights."""
        self.bind(policy)
        for name, p in self._trained():
            self.average[name] = self.average[name].to(p.device).lerp(p, self.rate)

    def reply(self, ids: Tensor, lengths: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """See `Replier.reply`."""
        with self._in_place():
            return cast(Replier, self._policy).reply(ids, lengths, state, **how)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        weights = {name: p.detach().clone() for name, p in self._trained()}
        try:
            self._put(self.average)
            yield
        finally:
            self._put(weights)

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, p in self._trained():
            p.copy_(weights[name])

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        assert self._policy is not None, "bind comes first"
        return [(name, p) for name, p in self._policy.named_parameters() if p.requires_grad]
