"""Take-over by value: the expert acts in states to which the learner's critic gives a low V."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.ranges import at_least
from data_modules.takeover.protocol import Starts, Takeover, checked_probability
from lightning_nlf.maths.schedules import Schedule, scheduled
from lightning_nlf.numbers import Share, Size


class ValueTriggered(Takeover):
    """The expert acts for `length` steps from states whose V(s) is in the lowest `fraction` of the last wave's values.

    The threshold is a quantile, because values may be negative, and their scale changes as the critic learns. A
    threshold such as "half of the mean V" would be meaningless. In the first wave the expert does not take over. The
    threshold is set when a wave is planned, and does not change within the wave.

    Args:
        fraction: share of the learner's decisions at which the expert takes over, if the distribution of values stays
            the same; or a schedule for this share.
        length: number of steps that the expert acts, including the step in the state with the low value.

    Raises:
        ValueError: fraction is outside [0, 1], or length < 1.
    """

    asks = "values"
    capacity = 1_000  # maximum number of stored values, spread evenly over the wave

    def __init__(self, fraction: Share | Schedule = 0.1, length: Size = 20) -> None:
        at_least(1, length=length)
        self.fraction = checked_probability(fraction, "fraction")
        self.length = length
        self.before = torch.empty(0)  # V in the previous wave
        self.current: list[Tensor] = []  # V in this wave
        self.bound = -math.inf

    def starts(self, episodes: int, typical_length: float, rng: np.random.Generator, experience: int) -> Starts:
        self.before, self.current = self._latest(), []
        fraction = scheduled(self.fraction, experience)
        self.bound = float(self.before.quantile(fraction)) if len(self.before) and fraction > 0 else -math.inf
        return super().starts(episodes, typical_length, rng, experience)

    def calls(self, evidence: Tensor) -> Tensor:
        values = evidence.detach().float().cpu()
        self.current.append(values)
        return values < self.bound

    def _latest(self) -> Tensor:
        """V of the last wave that has any values, at most `capacity` of them."""
        values = torch.cat(self.current) if self.current else self.before
        return values[:: max(math.ceil(len(values) / self.capacity), 1)]

    def state_dict(self) -> dict[str, Any]:
        return {"values": self._latest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before, self.current = state["values"], []
