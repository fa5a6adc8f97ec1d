"""When an expert acts in the learner's place: the questions that every kind of take-over answers."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.ranges import at_least, shares
from lightning_nlf.maths.schedules import Schedule, scheduled

Starts = NDArray[np.float64]
NEVER = np.inf


class Takeover(Protocol):
    """Decides who acts at each step: by a plan made before a collection, or by a look at what is played.

    A kind inherits from this class and overrides what differs: by default the learner acts throughout, nothing is
    looked at, and nothing is kept in checkpoints.

    Attributes:
        asks: what `calls` must be given of each state in which the learner acts: V(s) of its critic (`values`), or
            whether the critique of a reply points at it (`errors`). None: the plan decides alone.
        length: steps of the expert from where it takes over; None = to the end of the row.
    """

    asks: Literal["values", "errors"] | None = None
    length: int | None = None

    def plan(
        self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator, experience: int = 0
    ) -> Tensor:
        """Bool (episodes, horizon), True where the expert acts.

        Args:
            episodes: rows to plan.
            horizon: steps of a row at most.
            typical_length: mean length, in steps, of the episodes of the previous collection: a point drawn over the
                whole horizon would come after the fall of nearly every early episode.
            rng: the only source of chance.
            experience: steps decided before this collection, by all ranks; the clock of schedules.

        Raises:
            ValueError: episodes < 0, horizon < 1, or typical_length is not above 0.
        """
        at_least(0, episodes=episodes)
        at_least(1, horizon=horizon)
        if not (math.isfinite(typical_length) and typical_length > 0):
            raise ValueError(f"typical_length: got {typical_length}, must be finite and above 0")
        since = np.arange(horizon) - self.starts(episodes, typical_length, rng, experience)[:, None]
        return torch.from_numpy((since >= 0) & (since < (self.length or horizon)))

    def starts(self, episodes: int, typical_length: float, rng: np.random.Generator, experience: int) -> Starts:
        """The expert's first step in each episode, (episodes,); `NEVER` where it does not take over."""
        return np.full(episodes, NEVER)

    def calls(self, evidence: Tensor) -> Tensor:
        """What it asks of n states, (n,) → bool (n,), True where the expert takes over."""
        return torch.zeros(len(evidence), dtype=torch.bool)

    def state_dict(self) -> dict[str, Any]:
        """What moves from collection to collection; empty where nothing does."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to where `state_dict` was taken."""


def checked_probability(probability: float | Schedule, name: str = "probability") -> float | Schedule:
    """Schedules run from their value at 0 to that at ∞."""
    for steps in (0.0, math.inf):
        shares(**{name: scheduled(probability, steps)})
    return probability
