"""Comparison of an arm with its baseline over paired seeds, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import beta, norm, t

from lightning_nlf.studies.statistics import DRAWS, Interval, interval, lower_median, median_interval, resamples

LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """An arm and its baseline at one counter.

    Args:
        pairs: Number of seeds that both have.
        starts: Number of starts of these seeds.
        effect: With `solved` the ratio median(baseline) / median(arm), above 1 if the arm is better; otherwise the
            median over pairs of arm − baseline. Interval of level .95.
        together: The same with bounds that hold for all comparisons of the report together.
        better: Probability that the arm is better than the baseline with the same seed, ties half. Level .95.
    """

    arm: str
    baseline: str
    counter: str
    pairs: int
    starts: int
    effect: Interval
    together: Interval
    better: Interval


def least_starts(level: float) -> int:
    """Least number of starts for an interval of a median: all of them lie on one side with probability 2^(1 − n)."""
    return 1 + math.ceil(-math.log2(1 - level) - 1e-9)


def simultaneous(comparisons: int) -> float:
    """Bonferroni's level: intervals of this level hold together with probability .95, however they are correlated."""
    return 1 - (1 - LEVEL) / max(comparisons, 1)


def paired_ratio(
    arm: Sequence[float],
    baseline: Sequence[float],
    starts: Sequence[int],
    levels: Sequence[float] = (LEVEL,),
    budgets: tuple[float, float] = (math.inf, math.inf),
    draws: int = DRAWS,
) -> list[Interval]:
    """median(baseline) / median(arm) of steps to solve, with a bootstrap interval per level.

    An infinite median is only known to be above the budget. A lower bound counts the arm's as infinite and the
    baseline's as its budget, an upper bound the other way round, and the estimate both as their budgets; it is NaN if
    both are infinite. Swapping arm and baseline gives the inverse interval.

    Args: arm, baseline: paired steps, (n,) each; steps below 1 count as 1; starts: start of each pair, (n,); budgets:
        of the arm and of the baseline.
    """
    pairs = np.maximum(np.array([arm, baseline], dtype=float), 1)
    limits = np.maximum(np.array(budgets, dtype=float), 1)

    def ratios(medians: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest ratio that medians, (2, …), leave possible."""
        (a, b), (a_known, b_known) = medians, np.minimum(medians.T, limits).T
        unknown_a, unknown_b = np.isinf(a), np.isinf(b)
        low = np.where(unknown_a, 0.0, b_known / np.where(unknown_a, 1.0, a))
        high = np.where(unknown_b, np.inf, np.where(unknown_b, 1.0, b) / a_known)
        return low, high

    medians = lower_median(pairs)
    a, b = np.minimum(medians, limits)
    estimate = math.nan if np.isinf(medians).all() or np.isinf(a) and np.isinf(b) else float(b / a)
    low, high = ratios(lower_median(pairs[:, places(tuple(starts), draws)]))
    return [(estimate, *guarded(low, high, starts, level, 0.0)) for level in levels]


def paired_difference(
    arm: Sequence[float],
    baseline: Sequence[float],
    starts: Sequence[int],
    levels: Sequence[float] = (LEVEL,),
    draws: int = DRAWS,
) -> list[Interval]:
    """Median over pairs of arm − baseline, with an interval per level; two failed runs differ by 0.

    Where each pair has a start of its own, the interval is the exact one of order statistics: with 10 pairs the 2nd and
    the 9th difference. Otherwise starts and the pairs within each are resampled; the lower bound is one of lower
    medians, the upper bound one of upper medians.

    Args: arm, baseline: paired figures, (n,) each, infinite for failed runs; starts: start of each pair, (n,).
    """
    a, b = np.array(arm, dtype=float), np.array(baseline, dtype=float)
    with np.errstate(invalid="ignore"):
        differences = np.where(a == b, 0.0, a - b)
    low, high = float(lower_median(differences)), float(-lower_median(-differences))
    finite = math.isfinite(low) and math.isfinite(high)
    estimate = (low + high) / 2 if finite else low if low == high else math.nan
    if len(set(starts)) == len(starts):
        return [(estimate, *median_interval(differences.tolist(), level)[1:]) for level in levels]
    values = differences[places(tuple(starts), draws)]
    lows, highs = lower_median(values), -lower_median(-values)
    return [(estimate, *guarded(lows, highs, starts, level, -math.inf)) for level in levels]


def guarded(
    low: np.ndarray, high: np.ndarray, starts: Sequence[int], level: float, least: float
) -> tuple[float, float]:
    """Expanded percentile bounds of bootstrap values; all that is possible if the starts are too few for the level."""
    n = len(set(starts))
    if n < least_starts(level):
        return least, math.inf
    return interval(low, expanded(level, n))[0], interval(high, expanded(level, n))[1]


def expanded(level: float, n: int) -> float:
    """Level of the percentiles for n seeds: as much above `level` as Student's interval is above the normal one.

    Plain percentile intervals are too narrow for few seeds, above all at the high levels of simultaneous bounds.
    Hesterberg, "What Teachers Should Know about the Bootstrap", 2014, arXiv:1411.5279, section 5.3.
    """
    quantile = math.sqrt(n / (n - 1)) * t.ppf((1 + level) / 2, n - 1)
    return float(1 - 2 * norm.sf(quantile))


@lru_cache(maxsize=2)
def places(starts: tuple[int, ...], draws: int) -> np.ndarray:
    """Resampled pairs, the same for all arms with the same seeds; fewer draws of very many seeds, to save memory."""
    return resamples(starts, min(draws, 10_000_000 // len(starts))).astype(np.int32)


def probability_better(
    arm: Sequence[float], baseline: Sequence[float], starts: Sequence[int], lower: bool, level: float = LEVEL
) -> Interval:
    """P(the arm is better than the baseline with the same seed), ties half, with Clopper and Pearson's interval.

    All pairs of one start together count as one trial. Args: lower: whether lower figures are better.
    """
    a, b = (np.array(x, dtype=float) * (-1 if lower else 1) for x in (arm, baseline))
    wins = (a > b) + 0.5 * (a == b)
    by_start = [wins[np.asarray(starts) == start].mean() for start in dict.fromkeys(starts)]
    n, k, tail = len(by_start), float(np.sum(by_start)), (1 - level) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k > 0 else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return k / n, low, high
