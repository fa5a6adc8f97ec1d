"""Confidence intervals of means, medians and ratios over few seeds, and their rounding in texts.

A percentile bootstrap of a mean with a nominal coverage of .95 covers only .84 at n = 5 and .91 at n = 10. Means over
few seeds therefore use Student's interval, and medians over few seeds the exact interval of order statistics. The
bootstrap is used only with 50 seeds or with infinite values; `benchmarks/coverage.py` measures its coverage there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import binom, bootstrap, mannwhitneyu, t, ttest_ind

DRAWS = 100_000
Interval = tuple[float, float, float]  # the estimate, lower bound, upper bound


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of independent values with Student's interval, n − 1 degrees of freedom; infinite bounds for one value."""
    sample = np.asarray(values, dtype=float)
    middle = float(sample.mean())
    if len(sample) == 1:
        return middle, -math.inf, math.inf
    half = t.ppf((1 + level) / 2, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
    return middle, middle - float(half), middle + float(half)


def clustered_mean_interval(values: Sequence[float], starts: Sequence[int], level: float = 0.95) -> Interval:
    """Mean over starts of the mean of their runs, with Student's interval over starts.

    Runs from one start are correlated; an interval that treats them as independent would be too narrow.
    Args: starts: start of each run, (n,).
    """
    sample, places = np.asarray(values, dtype=float), np.asarray(starts)
    return mean_interval([sample[places == start].mean() for start in dict.fromkeys(starts)], level)


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Median with bounds that are order statistics, exact for any distribution; the lower median for even n.

    The k-th smallest and k-th largest value cover the median with probability 1 − 2·P(Binomial(n, ½) < k), which is
    .979 for n = 10 and k = 2. Values may be infinite. Below n = 6 no bounds reach .95, so they are infinite.
    """
    sample = np.sort(np.asarray(values, dtype=float))
    n = len(sample)
    k = int(binom.ppf((1 - level) / 2, n, 0.5))  # the largest k with P(Binomial < k) ≤ (1 − level) / 2
    if k < 1:
        return median(values), -math.inf, math.inf
    return median(values), float(sample[k - 1]), float(sample[n - k])


def ratio_interval(
    above: Sequence[float], below: Sequence[float], paired: bool = False, level: float = 0.95
) -> Interval:
    """Ratio of geometric means, above / below, with Student's (paired) or Welch's interval of the logarithms.

    Args: paired: the i-th values were measured right after each other, so that a common slowdown cancels.
    """
    a, b = np.log(np.asarray(above, dtype=float)), np.log(np.asarray(below, dtype=float))
    if paired:
        middle, low, high = mean_interval(a - b, level)
    elif a.std() == b.std() == 0:
        middle = low = high = float(a.mean() - b.mean())
    else:
        middle = float(a.mean() - b.mean())
        low, high = ttest_ind(a, b, equal_var=False).confidence_interval(level)
    return math.exp(middle), math.exp(low), math.exp(high)


def geometric_mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Geometric mean of positive values with Student's interval of their logarithms."""
    return ratio_interval(values, [1.0] * len(values), paired=True, level=level)


# ---- rounding: a rounded bound never claims more than the exact one


def rounded_down(x: float, digits: int = 0) -> str:
    """Largest number with this many decimal places that is not above x."""
    return _toward(x, digits, math.floor)


def rounded_up(x: float, digits: int = 0) -> str:
    """Smallest number with this many decimal places that is not below x."""
    return _toward(x, digits, math.ceil)


def _toward(x: float, digits: int, whole: Callable[[float], int]) -> str:
    if math.isinf(x):
        return "∞" if x > 0 else "-∞"
    scaled = x * 10**digits
    nearest = round(scaled)
    steps = nearest if math.isclose(scaled, nearest, rel_tol=1e-12, abs_tol=1e-9) else whole(scaled)
    return f"{steps / 10**digits + 0.0:,.{digits}f}"


def bounds(low: float, high: float, digits: int = 0) -> str:
    """`[low, high]`, with the lower bound rounded down and the upper bound rounded up."""
    return f"[{rounded_down(low, digits)}, {rounded_up(high, digits)}]"


def interval_text(interval: Interval, digits: int = 0) -> str:
    """`estimate [low, high]`"""
    figure = "∞" if math.isinf(interval[0]) else f"{interval[0]:,.{digits}f}"
    return f"{figure} {bounds(*interval[1:], digits)}"


# ---- bootstrap of medians with infinite values


def lower_median(values: Sequence[float] | np.ndarray, axis: int = -1) -> np.ndarray:
    """Lower median along an axis, which avoids a mean with an infinite value."""
    middle = (np.shape(values)[axis] - 1) // 2
    return np.partition(values, middle, axis).take(middle, axis)


def median(values: Sequence[float]) -> float:
    return float(lower_median(values))


def bootstrap_values(
    statistic: Callable[..., np.ndarray], *samples: Any, draws: int = DRAWS, seed: int | np.random.Generator = 0
) -> np.ndarray:
    """Values of a statistic on bootstrap resamples, (…, draws); the samples are resampled independently.

    Args: statistic: function of the samples that reduces their `axis`; samples: (…, n) each.
    """
    data = [np.repeat(x, 1 + (np.shape(x)[-1] == 1), -1) for x in samples]  # scipy requires at least two values
    settings: dict[str, Any] = {"axis": -1, "n_resamples": draws, "method": "percentile"}
    with np.errstate(invalid="ignore"):  # scipy's own interval may have infinite bounds, but is not used
        return bootstrap(data, statistic, **settings, random_state=np.random.default_rng(seed)).bootstrap_distribution


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values, which may be infinite."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)


def speed_up(
    baseline: Sequence[float],
    arm: Sequence[float],
    level: float = 0.95,
    budget: float = math.inf,
    draws: int = DRAWS,
) -> Interval:
    """median(baseline) / median(arm) with its bootstrap interval; the lower bound may be claimed.

    An infinite median of the arm is only known to be above its `budget`. The lower bound then counts it as infinite;
    the estimate and the upper bound count it as the budget. Without a budget the ratio is 0.
    """

    def ratios(slow: Any, quick: Any, axis: int = -1) -> np.ndarray:
        """Ratios, (2, …), with an infinite median of the arm counted as infinite and as its budget."""
        steps = np.minimum.outer([math.inf, budget], lower_median(quick, axis))
        return np.where(np.isinf(steps), 0.0, lower_median(slow, axis) / np.where(np.isinf(steps), 1.0, steps))

    lower, upper = bootstrap_values(ratios, baseline, arm, draws=draws)
    return float(ratios(baseline, arm)[1]), interval(lower, level)[0], interval(upper, level)[1]


def faster(baseline: Sequence[float], arm: Sequence[float]) -> tuple[float, float]:
    """P(a run of the arm is faster than one of the baseline), ties half, and the two-sided p of Mann-Whitney's test."""
    statistic, p = mannwhitneyu(np.asarray(baseline), np.asarray(arm))
    return float(statistic) / (len(baseline) * len(arm)), float(p)


def resamples(starts: Sequence[int], draws: int, seed: int = 0) -> np.ndarray:
    """Resampled indices of runs, (draws, starts · runs per start): starts with replacement, then runs within each.

    Runs from one start are correlated; an interval that treats them as independent would be too narrow.
    Args: starts: start of each run, (n,). All starts have the same weight, whatever their numbers of runs.
    """
    rng = np.random.default_rng(seed)
    places = [np.flatnonzero(np.asarray(starts) == start) for start in dict.fromkeys(starts)]
    counts = np.array([len(runs_of_start) for runs_of_start in places])
    table = np.stack([np.resize(runs_of_start, counts.max()) for runs_of_start in places])
    chosen = rng.integers(len(places), size=(draws, len(places)))[..., None]
    runs = (rng.random((draws, len(places), counts.max())) * counts[chosen]).astype(int)
    return table[chosen, runs].reshape(draws, -1)


def clustered_ratio_interval(
    above: Sequence[float], below: Sequence[float], starts: Sequence[int], draws: int = DRAWS
) -> Interval:
    """median(above) / median(below) with its bootstrap interval over starts and their runs; ∞ if above is.

    Args: above, below: paired values, (n,) each; starts: start of each pair, (n,).
    """
    pairs = np.array([above, below], dtype=float)

    def at(places: np.ndarray) -> np.ndarray:
        a, b = lower_median(pairs[:, places])
        with np.errstate(invalid="ignore"):  # ∞ / ∞
            return np.where(np.isinf(a), np.inf, a / b)  # a finite value over a failed baseline is 0

    return float(at(np.arange(len(starts)))), *interval(at(resamples(starts, draws)))
