"""Simulated coverage of the bootstrap intervals in the tables: how often a 95 % interval includes the true value.

    python benchmarks/coverage.py

Steps are drawn from lognormal distributions as wide as those of the committed runs. Prints one line per method. The
tables quote these figures for intervals that are not exact.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning_nlf.studies.statistics import bootstrap_values, clustered_ratio_interval, interval, speed_up  # noqa: E402

DRAWS = 2000  # resamples per bootstrap


def of_percentile_means(n: int, trials: int = 4000, seed: int = 0) -> float:
    """Coverage of a percentile bootstrap of the mean of n normal values, which no table uses any more."""
    rng = np.random.default_rng(seed)
    covered = 0
    for _ in range(trials):
        sample = rng.normal(size=n)
        low, high = interval(bootstrap_values(np.mean, sample, draws=DRAWS, seed=rng))
        covered += low <= 0 <= high
    return covered / trials


def of_speed_ups(runs: int = 50, width: float = 0.86, trials: int = 2000, seed: int = 0) -> float:
    """Coverage for the ratio of two medians of `runs` seeds each, as in `speedup.py`."""
    rng = np.random.default_rng(seed)
    covered = 0
    for _ in range(trials):
        slow, quick = rng.lognormal(3, width, runs), rng.lognormal(0, width, runs)
        _, low, high = speed_up(slow, quick, draws=DRAWS)
        covered += low <= np.exp(3) <= high
    return covered / trials


def of_clustered_ratios(
    starts: int = 5, runs: int = 3, between: float = 1.0, within: float = 0.5, trials: int = 2000, seed: int = 0
) -> float:
    """Coverage for the ratio of two medians of runs that share starts, as in `feedback.py convergence`."""
    rng = np.random.default_rng(seed)
    start = np.repeat(range(starts), runs)
    covered = 0
    for _ in range(trials):
        arms = np.exp(rng.normal(0, between, (2, starts))[:, start] + rng.normal(0, within, (2, len(start))))
        _, low, high = clustered_ratio_interval(*arms, start.tolist(), DRAWS)
        covered += low <= 1 <= high
    return covered / trials


def main() -> None:
    print(f"percentile bootstrap of a mean, n = 5: {of_percentile_means(5):.3f}, n = 10: {of_percentile_means(10):.3f}")
    print(f"bootstrap of a ratio of medians, 50 seeds each: {of_speed_ups():.3f}")
    print(f"the same over 5 starts and 3 runs of each: {of_clustered_ratios():.3f}")


if __name__ == "__main__":
    main()
