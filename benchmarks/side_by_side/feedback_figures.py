"""What the runs of `feedback.py` come to: endings, tokens to a threshold, and how arms differ.

Means have the 95 % t interval over starts. Ratios of medians, which may be infinite, resample starts and then the runs
of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from benchmarks.intervals import Interval, clustered_mean_interval, clustered_ratio_interval

Row = dict[str, Any]
Rows = list[Row]
Pairs = list[tuple[Row, Row]]
DRAWS = 20_000
LAST = 3  # validations that an ending is the mean of
KINDS = ("greedy", "sampled")
BUDGETS = {"env_steps": "sampled tokens", "optimizer_steps": "optimizer steps", "feedback_calls": "feedback calls"}


def ending(row: Row, kind: str = "sampled") -> float:
    """What the last validations found, in the mean; of what was not trained, its test."""
    course = [each[kind] for each in row.get("course", []) if kind in each]
    return sum(course[-LAST:]) / len(course[-LAST:]) if course else row[kind]


def crossing(row: Row, kind: str, threshold: float, counter: str = "env_steps") -> float:
    """Sampled tokens, or another counter, until the first of two validations in a row at the threshold; ∞ if
    that never was. What samples nothing is not validated so: 0 if it ends there on the test prompts.
    """
    course = [each for each in row.get("course", []) if kind in each]
    if not course:
        return 0.0 if row[kind] >= threshold else math.inf
    for one, two in zip(course, course[1:], strict=False):
        if one[kind] >= threshold and two[kind] >= threshold:
            return float(one.get(counter, 0))
    return math.inf


def paired(rows: Rows, arm: str, other: str) -> Pairs:
    """The runs of two arms from the same start and seed."""
    others = {(row["start"], row["seed"]): row for row in rows if row["arm"] == other}
    own = [row for row in rows if row["arm"] == arm]
    return [(row, others[key]) for row in own if (key := (row["start"], row["seed"])) in others]


def mean(rows: Rows, of: Callable[[Row], float]) -> Interval:
    """Of what `of` says of each run."""
    return clustered_mean_interval([of(row) for row in rows], [row["start"] for row in rows])


def gain(pairs: Pairs, of: Callable[[Row], float]) -> Interval:
    """The mean of what the first runs have more than the second."""
    return clustered_mean_interval([of(own) - of(base) for own, base in pairs], [own["start"] for own, _ in pairs])


def ratio(pairs: Pairs, of: Callable[[Row], float]) -> Interval:
    """Median of the first over that of the second; ∞ where it failed."""
    above, below = ([of(row) for row in rows] for rows in zip(*pairs, strict=True))
    return clustered_ratio_interval(above, below, [row["start"] for row, _ in pairs], DRAWS)


def after(budget: str, figure: str) -> Callable[[Row], float]:
    """What a run had earned when it had spent a budget; of what does not use it, what it earned at its end."""
    return lambda row: row.get("after", {}).get(budget, row)[figure]


def over_shuffled(kind: str) -> Callable[[Row], float]:
    """What a revision after the reply's own critique earns more than one after another reply's."""
    return lambda row: row[f"revised_{kind}"] - row[f"revised_shuffled_{kind}"]


def endings(rows: Rows) -> dict[str, dict[str, Interval]]:
    """By arm: what the test prompts earn at the end."""
    arms = dict.fromkeys(row["arm"] for row in rows)
    return {
        arm: {kind: mean([row for row in rows if row["arm"] == arm], itemgetter(kind)) for kind in KINDS}
        for arm in arms
    }
