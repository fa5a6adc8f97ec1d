"""When the expert acts in the learner's place. Plans know nothing of the environment."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Takeover(Protocol):
    """Decides before a collection, for each of its steps, who acts."""

    def plan(self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator) -> Tensor:
        """Bool (episodes, horizon), True where the expert acts.

        Args:
            episodes: rows to plan.
            horizon: steps of a row at most.
            typical_length: mean length, in steps, of the episodes of the previous collection: a point drawn over the
                whole horizon would come after the fall of nearly every early episode.
            rng: the only source of chance.

        Raises:
            ValueError: episodes < 0, horizon < 1, or typical_length is not above 0.
        """
        ...


class Geometric(Takeover):
    """The learner acts for n steps, P(n) = p (1 − p)ⁿ with mean (1 − p) / p, then the expert to the end of the row.

    p = 0.4, mean 1.5, is the setting of github.com/TanayGahlot/LearnFromNaturalLanguageFeedback.

    Raises:
        ValueError: p outside (0, 1].
    """

    def __init__(self, p: float = 0.4) -> None:
        if not 0 < p <= 1:
            raise ValueError(f"p: got {p}, must be in (0, 1]")
        self.p = p

    def plan(self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator) -> Tensor:
        _check_plan(episodes, horizon, typical_length)
        return _between(rng.geometric(self.p, episodes) - 1, horizon, horizon)


class Uniform(Takeover):
    """From a point uniform in [0, typical_length) the expert acts to the end of the row, in a share of the rows.

    Args:
        probability: that an episode is taken over at all.

    Raises:
        ValueError: probability outside [0, 1].
    """

    def __init__(self, probability: float = 1.0) -> None:
        self.probability = _checked_probability(probability)

    def plan(self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator) -> Tensor:
        _check_plan(episodes, horizon, typical_length)
        return _between(_starts(episodes, horizon, typical_length, self.probability, rng), horizon, horizon)


class Window(Takeover):
    """From a point uniform in [0, typical_length) the expert acts for `length` steps, then the learner again.

    Args:
        length: steps of the expert.
        probability: that an episode has such a window at all.

    Raises:
        ValueError: length < 1, or probability outside [0, 1].
    """

    def __init__(self, length: int = 20, probability: float = 0.25) -> None:
        if length < 1:
            raise ValueError(f"length: got {length}, must be at least 1")
        self.length = length
        self.probability = _checked_probability(probability)

    def plan(self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator) -> Tensor:
        _check_plan(episodes, horizon, typical_length)
        return _between(_starts(episodes, horizon, typical_length, self.probability, rng), self.length, horizon)


class PerStep(Takeover):
    """A coin at every step: the expert acts with `probability`.

    The β of DAgger's mixture, algorithm 3.1 of Ross et al. 2011.

    Raises:
        ValueError: probability outside [0, 1].
    """

    def __init__(self, probability: float = 0.1) -> None:
        self.probability = _checked_probability(probability)

    def plan(self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator) -> Tensor:
        _check_plan(episodes, horizon, typical_length)
        return torch.from_numpy(rng.random((episodes, horizon), dtype=np.float32) < self.probability)


class Always(Takeover):
    """The expert acts throughout: what behaviour cloning is trained on."""

    def plan(self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator) -> Tensor:
        _check_plan(episodes, horizon, typical_length)
        return torch.ones(episodes, horizon, dtype=torch.bool)


class Never(Takeover):
    """The learner acts throughout."""

    def plan(self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator) -> Tensor:
        _check_plan(episodes, horizon, typical_length)
        return torch.zeros(episodes, horizon, dtype=torch.bool)


def _starts(
    episodes: int, horizon: int, typical_length: float, probability: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(episodes,): the first step of the expert; `horizon`, that is never, in episodes that are not taken over."""
    points = np.floor(rng.random(episodes) * typical_length).astype(np.int64)
    return np.where(rng.random(episodes) < probability, points, horizon)


def _between(starts: NDArray[np.int64], length: int, horizon: int) -> Tensor:
    """(episodes, horizon): True in [start, start + length)."""
    since = np.arange(horizon) - starts[:, None]
    return torch.from_numpy((since >= 0) & (since < length))


def _checked_probability(probability: float) -> float:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability: got {probability}, must be in [0, 1]")
    return probability


def _check_plan(episodes: int, horizon: int, typical_length: float) -> None:
    if episodes < 0:
        raise ValueError(f"episodes: got {episodes}, must be at least 0")
    if horizon < 1:
        raise ValueError(f"horizon: got {horizon}, must be at least 1")
    if not (math.isfinite(typical_length) and typical_length > 0):
        raise ValueError(f"typical_length: got {typical_length}, must be finite and above 0")
