"""Protocol of take-overs: when an expert acts in the learner's place."""

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
    """A rule for who acts at each step, by a plan before a collection, or by values or errors during the collection.

    Subclasses override only what differs. By default the learner always acts, and there is no state for checkpoints.

    Attributes:
        asks: the evidence that `calls` needs about the learner's states: V(s) from the learner's critic (`values`), or
            whether the critique of a reply is about the token (`errors`). None = only the plan decides.
        length: number of steps that the expert acts after taking over; None = to the end of the row.
    """

    asks: Literal["values", "errors"] | None = None
    length: int | None = None

    def plan(
        self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator, experience: int = 0
    ) -> Tensor:
        """The planned steps of the expert: bool (episodes, horizon), True at the steps at which the expert acts.

        Args:
            episodes: number of rows to plan.
            horizon: maximum number of steps in a row.
            typical_length: mean number of steps per episode in the last collection. Early in training episodes are
                short, so a step drawn from the whole horizon would almost always come after the end.
            rng: the only source of random numbers.
            experience: number of steps before this collection, over all ranks, which is the clock of schedules.

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
        """The expert's first step in each episode, (episodes,); `NEVER` if it does not take over."""
        return np.full(episodes, NEVER)

    def calls(self, evidence: Tensor) -> Tensor:
        """Whether the expert takes over in each of n states, bool (n,).  evidence: (n,), as given by `asks`."""
        return torch.zeros(len(evidence), dtype=torch.bool)

    def state_dict(self) -> dict[str, Any]:
        """The state that changes between collections; empty if there is none."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""


def checked_probability(probability: float | Schedule, name: str = "probability") -> float | Schedule:
    """Check a probability or a schedule.  Raises ValueError: the value at step 0 or ∞ is outside [0, 1]."""
    for steps in (0.0, math.inf):
        shares(**{name: scheduled(probability, steps)})
    return probability
