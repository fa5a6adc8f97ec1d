"""When the expert acts in the learner's place. Plans know nothing of the environment."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_nlf.functional import Linear, Schedule, scheduled
from lightning_nlf.numbers import Count, PositiveShare, Share, Size, Steps


class Takeover(Protocol):
    """Decides before a collection, for each of its steps, who acts."""

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
        ...


class Geometric(Takeover):
    """The learner acts for n steps, P(n) = p (1 − p)ⁿ with mean (1 − p) / p, then the expert to the end of the row.

    p = 0.4, mean 1.5, is the setting of github.com/TanayGahlot/LearnFromNaturalLanguageFeedback.

    Args:
        p: that the expert takes over at the next step.
        every: of so many rows one is taken over, the last; 2 gives each of the learner's own episodes an injected one.

    Raises:
        ValueError: p outside (0, 1], or every < 1.
    """

    def __init__(self, p: PositiveShare = 0.4, every: Size = 1) -> None:
        if not 0 < p <= 1:
            raise ValueError(f"p: got {p}, must be in (0, 1]")
        if every < 1:
            raise ValueError(f"every: got {every}, must be at least 1")
        self.p, self.every = p, every

    def plan(
        self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator, experience: int = 0
    ) -> Tensor:
        check_plan(episodes, horizon, typical_length)
        starts = rng.geometric(self.p, episodes) - 1
        mine = np.arange(1, episodes + 1) % self.every == 0
        return _between(np.where(mine, starts, horizon), horizon, horizon)


class Uniform(Takeover):
    """From a point uniform in [0, typical_length) the expert acts to the end of the row, in a share of the rows.

    Args:
        probability: that an episode is taken over at all; or a schedule, which anneals it away.

    Raises:
        ValueError: probability outside [0, 1].
    """

    def __init__(self, probability: Share | Schedule = 1.0) -> None:
        self.probability = checked_probability(probability)

    def plan(
        self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator, experience: int = 0
    ) -> Tensor:
        check_plan(episodes, horizon, typical_length)
        return _between(
            _starts(episodes, horizon, typical_length, scheduled(self.probability, experience), rng), horizon, horizon
        )


class Window(Takeover):
    """From a point uniform in [0, typical_length) the expert acts for `length` steps, then the learner again.

    Args:
        length: steps of the expert.
        probability: that an episode has such a window at all; or a schedule of it.

    Raises:
        ValueError: length < 1, or probability outside [0, 1].
    """

    def __init__(self, length: Size = 20, probability: Share | Schedule = 0.25) -> None:
        if length < 1:
            raise ValueError(f"length: got {length}, must be at least 1")
        self.length = length
        self.probability = checked_probability(probability)

    def plan(
        self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator, experience: int = 0
    ) -> Tensor:
        check_plan(episodes, horizon, typical_length)
        return _between(
            _starts(episodes, horizon, typical_length, scheduled(self.probability, experience), rng),
            self.length,
            horizon,
        )


class PerStep(Takeover):
    """A coin at every step: the expert acts with `probability`, a number or a schedule.

    The β of DAgger's mixture, algorithm 3.1 of Ross et al. 2011.

    Raises:
        ValueError: probability outside [0, 1].
    """

    def __init__(self, probability: Share | Schedule = 0.1) -> None:
        self.probability = checked_probability(probability)

    def plan(
        self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator, experience: int = 0
    ) -> Tensor:
        check_plan(episodes, horizon, typical_length)
        return torch.from_numpy(
            rng.random((episodes, horizon), dtype=np.float32) < scheduled(self.probability, experience)
        )


class ReverseCurriculum(Takeover):
    """From a step that moves later and later the expert acts, to the end of the row or for `length` steps.

    The learner plays the beginning, and more and more of it: the mirror image of Florensa et al. 2017
    (https://arxiv.org/abs/1707.05300), where it plays the end, from starts further and further from the goal.

    Args:
        start, end: the expert's first step in a row, at first and at last.
        over: steps decided until it has moved there, in a straight line.
        length: steps of the expert; None = to the end of the row.
        probability: that an episode is taken over at all; or a schedule of it.

    Raises:
        ValueError: start or end < 0, over or length < 1, or probability outside [0, 1].
    """

    def __init__(
        self, start: Count, end: Count, over: Steps, length: Size | None = None, probability: Share | Schedule = 1.0
    ) -> None:
        for name, value in (("start", start), ("end", end)):
            if value < 0:
                raise ValueError(f"{name}: got {value}, must be at least 0")
        if length is not None and length < 1:
            raise ValueError(f"length: got {length}, must be at least 1")
        self.first = Linear(start, end, over)
        self.length = length
        self.probability = checked_probability(probability)

    def plan(
        self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator, experience: int = 0
    ) -> Tensor:
        check_plan(episodes, horizon, typical_length)
        taken = rng.random(episodes) < scheduled(self.probability, experience)
        starts = np.where(taken, round(self.first(experience)), horizon)
        return _between(starts, horizon if self.length is None else self.length, horizon)


class Always(Takeover):
    """The expert acts throughout: what behaviour cloning is trained on."""

    def plan(
        self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator, experience: int = 0
    ) -> Tensor:
        check_plan(episodes, horizon, typical_length)
        return torch.ones(episodes, horizon, dtype=torch.bool)


class Never(Takeover):
    """The learner acts throughout."""

    def plan(
        self, episodes: int, horizon: int, typical_length: float, rng: np.random.Generator, experience: int = 0
    ) -> Tensor:
        check_plan(episodes, horizon, typical_length)
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


def checked_probability(probability: float | Schedule, name: str = "probability") -> float | Schedule:
    """Schedules run from their value at 0 to that at ∞."""
    for steps in (0.0, math.inf):
        if not 0 <= (value := scheduled(probability, steps)) <= 1:
            raise ValueError(f"{name}: got {value}, must be in [0, 1]")
    return probability


def check_plan(episodes: int, horizon: int, typical_length: float) -> None:
    if episodes < 0:
        raise ValueError(f"episodes: got {episodes}, must be at least 0")
    if horizon < 1:
        raise ValueError(f"horizon: got {horizon}, must be at least 1")
    if not (math.isfinite(typical_length) and typical_length > 0):
        raise ValueError(f"typical_length: got {typical_length}, must be finite and above 0")
