"""Figures of `feedback.py`: final rewards, tokens to a threshold, gains and ratios between arms.

Means have 95 % t intervals over starts. Ratios of medians, which may be infinite, have intervals from resampling starts
and then the runs of each start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from lightning_nlf.studies.statistics import Interval, clustered_mean_interval, clustered_ratio_interval

Row = dict[str, Any]
Rows = list[Row]
Pairs = list[tuple[Row, Row]]
DRAWS = 20_000
LAST = 3  # validations that are averaged for the final reward
KINDS = ("greedy", "sampled")
BUDGETS = {"env_steps": "sampled tokens", "optimizer_steps": "optimizer steps", "feedback_calls": "feedback calls"}


def ending(row: Row, kind: str = "sampled") -> float:
    """Mean reward of the last validations; for an untrained model its test reward."""
    course = [point[kind] for point in row.get("course", []) if kind in point]
    return sum(course[-LAST:]) / len(course[-LAST:]) if course else row[kind]


def crossing(row: Row, kind: str, threshold: float, counter: str = "env_steps") -> float:
    """Sampled tokens, or another counter, until the first of two consecutive validations at the threshold, else ∞.

    A run that samples nothing has no such validations: 0 if its test reward reaches the threshold.
    """
    course = [point for point in row.get("course", []) if kind in point]
    if not course:
        return 0.0 if row[kind] >= threshold else math.inf
    for first, second in zip(course, course[1:], strict=False):
        if first[kind] >= threshold and second[kind] >= threshold:
            return float(first.get(counter, 0))
    return math.inf


def paired(rows: Rows, arm: str, base: str) -> Pairs:
    """Pairs of runs of two arms with the same start and seed."""
    by_run = {(row["start"], row["seed"]): row for row in rows if row["arm"] == base}
    arm_rows = [row for row in rows if row["arm"] == arm]
    return [(row, by_run[key]) for row in arm_rows if (key := (row["start"], row["seed"])) in by_run]


def mean(rows: Rows, of: Callable[[Row], float]) -> Interval:
    """Mean of `of(run)` over runs."""
    return clustered_mean_interval([of(row) for row in rows], [row["start"] for row in rows])


def gain(pairs: Pairs, of: Callable[[Row], float]) -> Interval:
    """Mean difference between the runs of each pair, first − second."""
    return clustered_mean_interval([of(row) - of(base) for row, base in pairs], [row["start"] for row, _ in pairs])


def ratio(pairs: Pairs, of: Callable[[Row], float]) -> Interval:
    """Ratio of medians, first / second; ∞ if the first is infinite."""
    above, below = ([of(row) for row in rows] for rows in zip(*pairs, strict=True))
    return clustered_ratio_interval(above, below, [row["start"] for row, _ in pairs], DRAWS)


def after(budget: str, figure: str) -> Callable[[Row], float]:
    """Function that reads a figure at the end of a budget; at the end of the run if it does not use this budget."""
    return lambda row: row.get("after", {}).get(budget, row)[figure]


def over_shuffled(kind: str) -> Callable[[Row], float]:
    """Reward of a revision after the reply's own critique, minus that after another reply's critique."""
    return lambda row: row[f"revised_{kind}"] - row[f"revised_shuffled_{kind}"]


def endings(rows: Rows) -> dict[str, dict[str, Interval]]:
    """Final test rewards by arm."""
    arms = dict.fromkeys(row["arm"] for row in rows)
    return {
        arm: {kind: mean([row for row in rows if row["arm"] == arm], itemgetter(kind)) for kind in KINDS}
        for arm in arms
    }
