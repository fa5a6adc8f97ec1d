"""Take-overs that are planned before a collection. They know nothing of the environment."""

from __future__ import annotations

import numpy as np

from data_modules.ranges import at_least
from data_modules.takeover.protocol import NEVER, Starts, Takeover, checked_probability
from lightning_nlf.maths.schedules import Linear, Schedule, scheduled
from lightning_nlf.numbers import Count, PositiveShare, Share, Size, Steps


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
        at_least(1, every=every)
        self.p, self.every = p, every

    def starts(self, episodes: int, typical_length: float, rng: np.random.Generator, experience: int) -> Starts:
        taken = np.arange(1, episodes + 1) % self.every == 0
        return np.where(taken, rng.geometric(self.p, episodes) - 1, NEVER)


class Uniform(Takeover):
    """From a point uniform in [0, typical_length) the expert acts to the end of the row, in a share of the rows.

    Args:
        probability: that an episode is taken over at all; or a schedule, which anneals it away.

    Raises:
        ValueError: probability outside [0, 1].
    """

    def __init__(self, probability: Share | Schedule = 1.0) -> None:
        self.probability = checked_probability(probability)

    def starts(self, episodes: int, typical_length: float, rng: np.random.Generator, experience: int) -> Starts:
        points = np.floor(rng.random(episodes) * typical_length)
        return np.where(rng.random(episodes) < scheduled(self.probability, experience), points, NEVER)


class Window(Uniform):
    """From a point uniform in [0, typical_length) the expert acts for `length` steps, then the learner again.

    Args:
        length: steps of the expert.
        probability: that an episode has such a window at all; or a schedule of it.

    Raises:
        ValueError: length < 1, or probability outside [0, 1].
    """

    def __init__(self, length: Size = 20, probability: Share | Schedule = 0.25) -> None:
        super().__init__(probability)
        at_least(1, length=length)
        self.length = length


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
        at_least(0, start=start, end=end)
        at_least(1, length=length)
        self.first = Linear(start, end, over)
        self.length = length
        self.probability = checked_probability(probability)

    def starts(self, episodes: int, typical_length: float, rng: np.random.Generator, experience: int) -> Starts:
        taken = rng.random(episodes) < scheduled(self.probability, experience)
        return np.where(taken, round(self.first(experience)), NEVER)


class Always(Takeover):
    """The expert acts throughout: what behaviour cloning is trained on."""

    def starts(self, episodes: int, typical_length: float, rng: np.random.Generator, experience: int) -> Starts:
        return np.zeros(episodes)
