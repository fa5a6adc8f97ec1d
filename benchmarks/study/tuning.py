"""Tuning of an arm over sixteen concurrent cells; cells that can no longer win are stopped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from benchmarks.study.convergence import MODES, Progress
from lightning_nlf.studies.statistics import median


def cells(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations of the values of each key; the last key varies fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def score(steps: dict[str, Sequence[float]]) -> float:
    """Score of a cell, lower is better: geometric mean of the medians of both measures over the tuning seeds."""
    return math.sqrt(math.prod(median(values) for values in steps.values()))


class Race:
    """Progress of the tuning runs of one arm, by cell."""

    def __init__(self, cells: int, seeds: int) -> None:
        self.progress = [[Progress() for _ in range(seeds)] for _ in range(cells)]

    def watch(self) -> None:
        """Stop the cells whose lowest possible score is above the highest possible score of another cell."""
        best = min(
            score({mode: [p.solved.get(mode, math.inf) for p in cell_progress] for mode in MODES})
            for cell_progress in self.progress
        )
        for cell_progress in self.progress:
            if score({mode: [p.least(mode) for p in cell_progress] for mode in MODES}) > best:
                for p in cell_progress:
                    p.stopped = True


def winner(results: list[list[dict[str, Any]]]) -> int:
    """Index of the best cell; if no cell is solved on half of the seeds, the one with the fewest failures.

    Args: results: results of `convergence.run` by cell and seed; stopped runs count as unsolved.
    """

    def order(runs: list[dict[str, Any]]) -> tuple[float, int, float]:
        steps = {mode: [run[mode]["steps"] for run in runs] for mode in MODES}
        failures = sum(math.isinf(x) for values in steps.values() for x in values)
        return score(steps), failures, median(steps["sust"])

    return min(range(len(results)), key=lambda i: order(results[i]))
