"""Aggregates of a metric over several settings: interquartile mean and probability of improvement.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", 2021, arXiv:2108.13264. As in
their library rliable, runs are resampled within each setting (stratified bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import trim_mean

from lightning_nlf.studies.statistics import Interval, interval, resamples

DRAWS = 2000
Figures = Sequence[Sequence[float]]  # by setting, by run


def interquartile_mean(figures: Figures, starts: Sequence[Sequence[int]], level: float = 0.95) -> Interval:
    """Mean of the middle half of all runs of all settings. Args: starts: start of each run, as `figures`."""
    samples = [np.array(runs, dtype=float) for runs in figures]
    resampled = [x[resamples(s, DRAWS, i)] for i, (x, s) in enumerate(zip(samples, starts, strict=True))]
    values = trim_mean(np.concatenate(resampled, axis=1), 0.25, axis=1)
    return float(trim_mean(np.concatenate(samples), 0.25)), *interval(values, level)


def probability_of_improvement(
    arm: Figures, baseline: Figures, starts: Sequence[Sequence[int]], lower: bool, level: float = 0.95
) -> Interval:
    """Mean over settings of P(a run of the arm is better than one of the baseline), ties half.

    Args: arm, baseline: paired figures by setting; starts: start of each pair; lower: whether lower is better.
    """
    estimates, values = [], []
    for i, (a, b, s) in enumerate(zip(arm, baseline, starts, strict=True)):
        pairs = np.array([a, b], dtype=float) * (-1 if lower else 1)
        estimates.append(float(wins(*pairs)))
        values.append(np.array([wins(*pairs[:, places]) for places in resamples(s, DRAWS, i)]))
    return float(np.mean(estimates)), *interval(np.mean(values, axis=0), level)


def wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of all pairs in which a is above b, ties half (Mann and Whitney's statistic)."""
    return np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b))
