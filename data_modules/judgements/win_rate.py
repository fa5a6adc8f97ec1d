"""How often one policy wins against another, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence


def win_rate(preferences: Sequence[float]) -> tuple[float, float, float]:
    """How often A wins against B, a tie half, and its 95 % interval: Wilson's, of so many comparisons.

    Args: preferences: P(A is better), each; above ½ A wins.
    """
    n = len(preferences)
    rate = sum((p > 0.5) + 0.5 * (p == 0.5) for p in preferences) / n
    z = 1.959964
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return rate, middle - half, middle + half
