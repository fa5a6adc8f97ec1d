"""What the runs of `feedback.py` come to: endings, tokens to a threshold, and how arms differ."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.side_by_side.rlhf_report import Rows, interval

DRAWS = 20_000
LAST = 3  # validations that an ending is the mean of
KINDS = ("greedy", "sampled")


def ending(row: dict[str, Any], kind: str = "sampled") -> float:
    """What the last validations found, in the mean; of what was not trained, its test."""
    course = [each[kind] for each in row.get("course", []) if kind in each]
    return sum(course[-LAST:]) / len(course[-LAST:]) if course else row[kind]


def crossing(row: dict[str, Any], kind: str, threshold: float, counter: str = "env_steps") -> float:
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


def paired(rows: Rows, arm: str, other: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The runs of two arms from the same start and seed."""
    others = {(row["start"], row["seed"]): row for row in rows if row["arm"] == other}
    own = [row for row in rows if row["arm"] == arm]
    return [(row, others[key]) for row in own if (key := (row["start"], row["seed"])) in others]


def ratio(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Median tokens of the first over those of the second, and its interval by resampling pairs; ∞ where it failed."""
    own, other = np.array(pairs, dtype=float).T

    def of(index: np.ndarray) -> np.ndarray:
        a, b = (np.sort(x[index], -1)[..., (len(pairs) - 1) // 2] for x in (own, other))
        with np.errstate(invalid="ignore"):  # ∞ / ∞
            return np.where(np.isinf(a), np.inf, a / b)  # a failed baseline: a finite run is 0 of it

    drawn = of(np.random.default_rng(0).integers(len(pairs), size=(DRAWS, len(pairs))))
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return float(of(np.arange(len(pairs)))), float(low), float(high)


def endings(rows: Rows) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By arm: what the test prompts earn at the end."""
    arms = dict.fromkeys(row["arm"] for row in rows)
    return {arm: {kind: interval([r[kind] for r in rows if r["arm"] == arm]) for kind in KINDS} for arm in arms}


def gain(rows: Rows, arm: str, other: str, kind: str) -> tuple[float, float, float]:
    """Of the test's earnings over another arm's, paired."""
    return interval([own[kind] - base[kind] for own, base in paired(rows, arm, other)])
