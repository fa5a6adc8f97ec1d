"""Sixteen cells of an arm side by side; a cell that can no longer win is stopped, which leaves the winner the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from benchmarks.intervals import median
from benchmarks.study.convergence import MODES, Progress


def cells(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations of the values of each key, the last key moving fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def score(steps: dict[str, Sequence[float]]) -> float:
    """What a cell is chosen by: the geometric mean of the medians of both measures, over the tuning seeds."""
    return math.sqrt(math.prod(median(values) for values in steps.values()))


class Race:
    """The tuning runs of one arm, by cell."""

    def __init__(self, cells: int, seeds: int) -> None:
        self.progress = [[Progress() for _ in range(seeds)] for _ in range(cells)]

    def watch(self) -> None:
        """Stops the cells whose least possible score is above the greatest possible one of another."""
        best = min(
            score({mode: [p.solved.get(mode, math.inf) for p in own] for mode in MODES}) for own in self.progress
        )
        for own in self.progress:
            if score({mode: [p.least(mode) for p in own] for mode in MODES}) > best:
                for p in own:
                    p.stopped = True


def winner(results: list[list[dict[str, Any]]]) -> int:
    """The best cell; without any that half of the seeds solve, the one with the fewest failures.

    Args: results: by cell and seed, what `convergence.run` returned; a run that was stopped counts as unsolved.
    """

    def order(own: list[dict[str, Any]]) -> tuple[float, int, float]:
        steps = {mode: [run[mode]["steps"] for run in own] for mode in MODES}
        failures = sum(math.isinf(x) for values in steps.values() for x in values)
        return score(steps), failures, median(steps["sust"])

    return min(range(len(results)), key=lambda i: order(results[i]))
