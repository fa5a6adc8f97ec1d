"""Medians with infinities, how much faster one sample is than another, and resamples of runs that share a start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import mannwhitneyu

DRAWS = 100_000


def medians(values: Sequence[float], seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """Medians of bootstrap resamples, (draws,); the lower one of an even number: no mean with an infinity."""
    sample = np.sort(np.asarray(values, dtype=float))
    # The k-th smallest of n uniform ranks: one draw instead of n.
    n, k = len(sample), (len(sample) - 1) // 2
    ranks = np.random.default_rng(seed).beta(k + 1, n - k, draws)
    return sample[np.minimum((ranks * n).astype(int), n - 1)]


def median(values: Sequence[float]) -> float:
    return float(np.sort(np.asarray(values, dtype=float))[(len(values) - 1) // 2])


def interval(sample: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap values, infinities where they are."""
    low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)


def speed_up(baseline: Sequence[float], arm: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """median(baseline) / median(arm) with its bootstrap interval; the lower bound is what may be claimed.

    Where both medians are infinite the ratio is 0: nothing was shown.
    """

    def ratio(a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
        a, b = np.broadcast_arrays(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
        return np.where(np.isinf(b), 0.0, a / np.where(np.isinf(b), 1.0, b))

    drawn = ratio(medians(baseline, seed=1), medians(arm, seed=2))
    return float(ratio(median(baseline), median(arm))), *interval(drawn, level)


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
