"""A slow average of the policy that is being trained, as critic or reviser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_nlf.batch import Replier
from lightning_nlf.numbers import Share


class PolicyAverage:
    """A `Replier` that replies as the exponential moving average of the policy: ā ← ā + rate · (θ − ā).

    It begins where the policy is at the first collection, and moves at every further one. Only what is trained is
    averaged, with LoRA the additions alone; all else is the policy's own. To reply it puts the average in the policy's
    place, and the policy back. Checkpoints hold it.

    Args:
        rate: 0 is the start of the run for good, 1 the policy itself.

    Raises:
        ValueError: a rate outside [0, 1].
    """

    def __init__(self, rate: Share = 0.05) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: got {rate}, must be from 0 to 1")
        self.rate = rate
        self.average: dict[str, Tensor] = {}
        self._policy: nn.Module | None = None

    def bind(self, policy: Replier) -> None:
        """Reply in its place from now on; begin with it, where there is no average yet."""
        self._policy = cast(nn.Module, policy)
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in self._trained()}

    @torch.no_grad()
    def follow(self, policy: Replier) -> None:
        """A step towards the policy."""
        self.bind(policy)
        for name, p in self._trained():
            self.average[name] = self.average[name].to(p.device).lerp(p, self.rate)

    def reply(self, ids: Tensor, lengths: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """`Replier.reply`."""
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
