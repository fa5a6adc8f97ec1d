"""A take-over that cannot be planned: the learner's own critic calls the expert while it plays."""

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
    """For `length` steps the expert acts where V(s) is among the lowest `fraction` of the wave before.

    A quantile, because values may be negative and grow with the critic: "half of the mean V" would mean nothing. In
    the first wave nobody is taken over. The bound is drawn when a wave is planned, and stays while it is played.

    Args:
        fraction: of the learner's decisions that call the expert, if the values stay as they were; or a schedule of it.
        length: steps of the expert, from the state in question on.

    Raises:
        ValueError: fraction outside [0, 1], or length < 1.
    """

    asks = "values"
    kept = 1_000  # values remembered, spread evenly over the wave

    def __init__(self, fraction: Share | Schedule = 0.1, length: Size = 20) -> None:
        at_least(1, length=length)
        self.fraction = checked_probability(fraction, "fraction")
        self.length = length
        self.before = torch.empty(0)  # V in the wave before this one
        self.seen: list[Tensor] = []  # V in this one
        self.bound = -math.inf

    def starts(self, episodes: int, typical_length: float, rng: np.random.Generator, experience: int) -> Starts:
        self.before, self.seen = self._latest(), []
        fraction = scheduled(self.fraction, experience)
        self.bound = float(self.before.quantile(fraction)) if len(self.before) and fraction > 0 else -math.inf
        return super().starts(episodes, typical_length, rng, experience)

    def calls(self, evidence: Tensor) -> Tensor:
        values = evidence.detach().float().cpu()
        self.seen.append(values)
        return values < self.bound

    def _latest(self) -> Tensor:
        """V in the last wave in which anybody was asked, `kept` at most."""
        seen = torch.cat(self.seen) if self.seen else self.before
        return seen[:: max(math.ceil(len(seen) / self.kept), 1)]

    def state_dict(self) -> dict[str, Any]:
        return {"values": self._latest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before, self.seen = state["values"], []
