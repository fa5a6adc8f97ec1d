"""Win rate of one policy against another, with a confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence


def win_rate(preferences: Sequence[float]) -> tuple[float, float, float]:
    """The win rate of A against B, in which ties count half, and its 95 % confidence interval (Wilson score interval).

    Args: preferences: the probability that A is better, for each comparison. A wins if it is above ½.
    """
    n = len(preferences)
    rate = sum((p > 0.5) + 0.5 * (p == 0.5) for p in preferences) / n
    z = 1.959964
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return rate, middle - half, middle + half
