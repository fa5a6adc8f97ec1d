"""Take-overs that cannot be planned: the learner's own critic calls the expert."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from data_modules.takeover import Takeover, check_plan, checked_probability
from lightning_nlf.functional import Schedule, scheduled
from lightning_nlf.numbers import Share, Size


@runtime_checkable
class Triggered(Takeover, Protocol):
    """A take-over that cannot be planned: what the learner's critic says of a state decides, while it is played.

    The player asks `trigger` before each step about the rows in which the learner would act, and lets the expert act
    for `length` steps where the answer is yes. Whatever moves is in `state_dict`.
    """

    length: int

    def trigger(self, values: Tensor) -> Tensor:
        """V(s) (n,) of the states to decide in → bool (n,), True where the expert takes over."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class ValueTriggered(Triggered):
    """For `length` steps the expert acts where V(s) is among the lowest `fraction` of the wave before.

    A quantile, because values may be negative and grow with the critic: "half of the mean V" would mean nothing. In
    the first wave nobody is taken over. The bound is drawn when a wave is planned, and stays while it is played.

    Args:
        fraction: of the learner's decisions that call the expert, if the values stay as they were; or a schedule of it.
        length: steps of the expert, from the state in question on.

    Raises:
        ValueError: fraction outside [0, 1], or length < 1.
    """

    kept = 1_000  # values remembered, spread evenly over the wave

    def __init__(self, fraction: Share | Schedule = 0.1, length: Size = 20) -> None:
        if length < 1:
            raise ValueError(f"length: got {length}, must be at least 1")
        self.fraction = checked_probability(fraction, "fraction")
        self.length = length
        self.before = torch.empty(0)  # V in the wave before this one
        self.seen: list[Tensor] = []  # V in this one
        self.bound = -math.inf

    def plan(
        self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator, experience: int = 0
    ) -> Tensor:
        check_plan(episodes, horizon, typical_length)
        self.before, self.seen = self._latest(), []
        fraction = scheduled(self.fraction, experience)
        self.bound = float(self.before.quantile(fraction)) if len(self.before) and fraction > 0 else -math.inf
        return torch.zeros(episodes, horizon, dtype=torch.bool)

    def trigger(self, values: Tensor) -> Tensor:
        values = values.detach().float().cpu()
        self.seen.append(values)
        return values < self.bound

    def _latest(self) -> Tensor:
        """V in the last wave in which anybody was asked, `kept` at most."""
        seen = torch.cat(self.seen) if self.seen else self.before
        return seen[:: max(math.ceil(len(seen) / self.kept), 1)]

    def state_dict(self) -> dict[str, Tensor]:
        return {"values": self._latest()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.before, self.seen = state["values"], []
