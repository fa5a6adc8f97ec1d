"""Take-overs that are planned before a collection, independently of the RL environment."""

from __future__ import annotations

import numpy as np

from data_modules.ranges import at_least
from data_modules.takeover.protocol import NEVER, Starts, Takeover, checked_probability
from lightning_nlf.maths.schedules import Linear, Schedule, scheduled
from lightning_nlf.numbers import Count, PositiveShare, Share, Size, Steps


class Geometric(Takeover):
    """The learner acts for n steps, with P(n) = p (1 − p)ⁿ, then the expert acts to the end of the row.

    The mean of n is (1 − p) / p. https://github.com/TanayGahlot/LearnFromNaturalLanguageFeedback uses p = 0.4, with
    mean 1.5.

    Args:
        p: probability that the expert takes over at the next step.
        every: the expert takes over in one of this many rows. With 2, rows with and without a take-over alternate.

    Raises:
        ValueError: p is outside (0, 1], or every < 1.
    """

    def __init__(self, p: PositiveShare = 0.4, every: Size = 1) -> None:
        if not 0 < p <= 1:
            raise ValueError(f"p: got {p}, must be in (0, 1]")
        at_least(1, every=every)
        self.p, self.every = p, every

    def starts(self, episodes: int, typical_length: float, rng: np.random.Generator, experience: int) -> Starts:
        has_takeover = np.arange(1, episodes + 1) % self.every == 0
        return np.where(has_takeover, rng.geometric(self.p, episodes) - 1, NEVER)


class Uniform(Takeover):
    """In a share of the rows the expert acts from a step uniform in [0, typical_length) to the end of the row.

    Args:
        probability: probability that the expert takes over in an episode; or a schedule, for example one that ends at
            0.

    Raises:
        ValueError: probability is outside [0, 1].
    """

    def __init__(self, probability: Share | Schedule = 1.0) -> None:
        self.probability = checked_probability(probability)

    def starts(self, episodes: int, typical_length: float, rng: np.random.Generator, experience: int) -> Starts:
        points = np.floor(rng.random(episodes) * typical_length)
        return np.where(rng.random(episodes) < scheduled(self.probability, experience), points, NEVER)


class Window(Uniform):
    """The expert acts for `length` steps from a step uniform in [0, typical_length), then the learner acts again.

    Args:
        length: number of steps that the expert acts.
        probability: probability that an episode has such a window; or a schedule.

    Raises:
        ValueError: length < 1, or probability is outside [0, 1].
    """

    def __init__(self, length: Size = 20, probability: Share | Schedule = 0.25) -> None:
        super().__init__(probability)
        at_least(1, length=length)
        self.length = length


class ReverseCurriculum(Takeover):
    """The expert acts from a step that moves later over the run, to the end of the row or for `length` steps.

    The learner plays the beginning of an episode, and the beginning gets longer over the run. In the curriculum of
    Florensa et al. 2017 (https://arxiv.org/abs/1707.05300) the learner instead plays the end of an episode, from starts
    further and further away from the goal.

    Args:
        start, end: the expert's first step in a row at the beginning and at the end of the run's schedule.
        over: number of environment steps in which the first step moves linearly from `start` to `end`.
        length: number of steps that the expert acts; None = to the end of the row.
        probability: probability that the expert takes over in an episode; or a schedule.

    Raises:
        ValueError: start or end < 0, over or length < 1, or probability is outside [0, 1].
    """

    def __init__(
        self, start: Count, end: Count, over: Steps, length: Size | None = None, probability: Share | Schedule = 1.0
    ) -> None:
        at_least(0, start=start, end=end)
        at_least(1, length=length)
        self.first = Linear(start, end, over)
        self.length = length
        self.probability = checked_probability(probability)

    def starts(self, episodes: int, typical_length: float, rng: np.random.Generator, experience: int) -> Starts:
        has_takeover = rng.random(episodes) < scheduled(self.probability, experience)
        return np.where(has_takeover, round(self.first(experience)), NEVER)


class Always(Takeover):
    """The expert acts at every step, as in data for behaviour cloning."""

    def starts(self, episodes: int, typical_length: float, rng: np.random.Generator, experience: int) -> Starts:
        return np.zeros(episodes)
