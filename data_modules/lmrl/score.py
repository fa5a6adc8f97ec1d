"""Scores that can be compared over tasks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Anchors:
    """Mean returns of a task that stand for 0, 50 and 100 (LMRL-Gym, https://arxiv.org/abs/2311.18232, section 6).

    Args:
        least: the lowest possible; middle: of the data set; most: the best known, which may be exceeded.
    """

    least: float
    middle: float
    most: float

    def score(self, mean_return: float) -> float:
        """Piecewise linear between the anchors and beyond the highest; never below 0."""
        if mean_return < self.middle:
            return max(50 * (mean_return - self.least) / (self.middle - self.least), 0.0)
        return 50 + 50 * (mean_return - self.middle) / (self.most - self.middle)
