"""Confidence intervals of means, medians and ratios over few seeds, and how their bounds are written.

A percentile bootstrap of a mean covers .84 at n = 5 and .91 at n = 10 where it says .95, so means over few seeds have
Student's interval, and medians over few seeds the exact one of order statistics. The bootstrap is kept where 50 seeds,
or infinities, leave nothing simpler; `coverage.py` measures what it covers there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import binom, bootstrap, mannwhitneyu, t, ttest_ind

DRAWS = 100_000
Interval = tuple[float, float, float]  # the figure, and its bounds


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of independent values with Student's interval, n − 1 degrees of freedom; one value has no bounds."""
    sample = np.asarray(values, dtype=float)
    middle = float(sample.mean())
    if len(sample) == 1:
        return middle, -math.inf, math.inf
    half = t.ppf((1 + level) / 2, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
    return middle, middle - float(half), middle + float(half)


def clustered_mean_interval(values: Sequence[float], starts: Sequence[int], level: float = 0.95) -> Interval:
    """Mean over starts of the means of their runs, with Student's interval over starts.

    Runs from one start are alike: as if they were independent, they would claim more than they show.
    Args: starts: of each run, (n,).
    """
    sample, places = np.asarray(values, dtype=float), np.asarray(starts)
    return mean_interval([sample[places == start].mean() for start in dict.fromkeys(starts)], level)


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Median, the lower one of an even number, between two order statistics: exact for any distribution.

    The k-th smallest and k-th largest cover the median with 1 − 2·P(Binomial(n, ½) < k), which for n = 10 is .979 at
    k = 2. Infinities stay where they are. Below n = 6 no two values reach .95: the bounds are infinite.
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
    """Ratio of geometric means, above over below, with Student's (paired) or Welch's interval of the logarithms.

    Args: paired: the i-th values were measured one after the other, so that what slowed both cancels.
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


# ---- as they are written: a bound never claims more than it is


def rounded_down(x: float, digits: int = 0) -> str:
    """The largest number of so many digits after the point that is not above x."""
    return _toward(x, digits, math.floor)


def rounded_up(x: float, digits: int = 0) -> str:
    """The smallest number of so many digits after the point that is not below x."""
    return _toward(x, digits, math.ceil)


def _toward(x: float, digits: int, whole: Callable[[float], int]) -> str:
    if math.isinf(x):
        return "∞" if x > 0 else "-∞"
    scaled = x * 10**digits
    nearest = round(scaled)
    steps = nearest if math.isclose(scaled, nearest, rel_tol=1e-12, abs_tol=1e-9) else whole(scaled)
    return f"{steps / 10**digits + 0.0:,.{digits}f}"


def bounds(low: float, high: float, digits: int = 0) -> str:
    """`[low, high]`, the lower bound rounded down and the upper one up."""
    return f"[{rounded_down(low, digits)}, {rounded_up(high, digits)}]"


def shown(interval: Interval, digits: int = 0) -> str:
    """`figure [low, high]`"""
    figure = "∞" if math.isinf(interval[0]) else f"{interval[0]:,.{digits}f}"
    return f"{figure} {bounds(*interval[1:], digits)}"


# ---- medians with infinities, by the bootstrap


def lower_median(values: Sequence[float] | np.ndarray, axis: int = -1) -> np.ndarray:
    """Median along an axis, the lower one of an even number: no mean with an infinity."""
    middle = (np.shape(values)[axis] - 1) // 2
    return np.partition(values, middle, axis).take(middle, axis)


def median(values: Sequence[float]) -> float:
    return float(lower_median(values))


def bootstrap_values(
    statistic: Callable[..., np.ndarray], *samples: Any, draws: int = DRAWS, seed: int | np.random.Generator = 0
) -> np.ndarray:
    """Values of a statistic on bootstrap resamples, (…, draws); each sample is resampled by itself.

    Args: statistic: of the samples, reduces their `axis`; samples: (…, n) each.
    """
    data = [np.repeat(x, 1 + (np.shape(x)[-1] == 1), -1) for x in samples]  # scipy asks for two values at least
    settings: dict[str, Any] = {"axis": -1, "n_resamples": draws, "method": "percentile"}
    with np.errstate(invalid="ignore"):  # scipy's own interval, which is not used, lies between infinities
        return bootstrap(data, statistic, **settings, random_state=np.random.default_rng(seed)).bootstrap_distribution


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap values, infinities where they are."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)


def speed_up(
    baseline: Sequence[float],
    arm: Sequence[float],
    level: float = 0.95,
    budget: float = math.inf,
    draws: int = DRAWS,
) -> Interval:
    """median(baseline) / median(arm) with its bootstrap interval; the lower bound is what may be claimed.

    Where the arm's median is infinite, it is known to be above its `budget` only: the lower bound takes it as never,
    figure and upper bound as the budget, above which they are not known either. Without a budget the ratio is 0 there:
    nothing was shown.
    """

    def ratios(slow: Any, quick: Any, axis: int = -1) -> np.ndarray:
        """(2, …), an infinite median of the arm taken as never and as its budget."""
        steps = np.minimum.outer([math.inf, budget], lower_median(quick, axis))
        return np.where(np.isinf(steps), 0.0, lower_median(slow, axis) / np.where(np.isinf(steps), 1.0, steps))

    least, most = bootstrap_values(ratios, baseline, arm, draws=draws)
    return float(ratios(baseline, arm)[1]), interval(least, level)[0], interval(most, level)[1]


def faster(baseline: Sequence[float], arm: Sequence[float]) -> tuple[float, float]:
    """P(a run of the arm is faster than one of the baseline), ties half; and the two-sided p of Mann-Whitney."""
    statistic, p = mannwhitneyu(np.asarray(baseline), np.asarray(arm))
    return float(statistic) / (len(baseline) * len(arm)), float(p)


def resamples(starts: Sequence[int], draws: int, seed: int = 0) -> np.ndarray:
    """Places in `starts`, (draws, starts · runs of one): starts with replacement, and of each its runs so again.

    Runs from one start are alike: as if they were independent, they would claim more than they show.
    Args: starts: of each run, (n,); of two starts with different numbers of runs both weigh the same.
    """
    rng = np.random.default_rng(seed)
    places = [np.flatnonzero(np.asarray(starts) == start) for start in dict.fromkeys(starts)]
    counts = np.array([len(own) for own in places])
    table = np.stack([np.resize(own, counts.max()) for own in places])
    drawn = rng.integers(len(places), size=(draws, len(places)))[..., None]
    runs = (rng.random((draws, len(places), counts.max())) * counts[drawn]).astype(int)
    return table[drawn, runs].reshape(draws, -1)


def clustered_ratio_interval(
    above: Sequence[float], below: Sequence[float], starts: Sequence[int], draws: int = DRAWS
) -> Interval:
    """median(above) / median(below) with its bootstrap interval over starts and the runs of each; ∞ where above is.

    Args: above, below: paired, (n,) each; starts: of each pair, (n,).
    """
    pairs = np.array([above, below], dtype=float)

    def at(places: np.ndarray) -> np.ndarray:
        a, b = lower_median(pairs[:, places])
        with np.errstate(invalid="ignore"):  # ∞ / ∞
            return np.where(np.isinf(a), np.inf, a / b)  # a failed baseline: a finite run is 0 of it

    return float(at(np.arange(len(starts)))), *interval(at(resamples(starts, draws)))
