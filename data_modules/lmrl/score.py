"""Scores that are comparable across tasks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Anchors:
    """The mean returns that score 0, 50 and 100 (LMRL-Gym, https://arxiv.org/abs/2311.18232, section 6).

    Args: least: the lowest possible return; middle: the mean return of the data set; best: the best known return, which
        can be exceeded.
    """

    least: float
    middle: float
    best: float

    def score(self, mean_return: float) -> float:
        """The score of a mean return, piecewise linear also above the highest anchor, and never below 0."""
        if mean_return < self.middle:
            return max(50 * (mean_return - self.least) / (self.middle - self.least), 0.0)
        return 50 + 50 * (mean_return - self.middle) / (self.best - self.middle)
