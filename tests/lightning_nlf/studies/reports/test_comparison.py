"""Paired intervals: enumerated by hand, exact ones, coverage, symmetry, and runs that were not solved."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from lightning_nlf.studies.aggregates import interquartile_mean, probability_of_improvement
from lightning_nlf.studies.comparison import (
    expanded,
    least_starts,
    paired_difference,
    paired_ratio,
    probability_better,
    simultaneous,
)
from lightning_nlf.studies.statistics import lower_median, resamples

INF = math.inf
TWENTY = list(range(20))


def test_a_median_of_few_seeds_has_no_bounds():
    """All n values lie on one side of the median with probability 2^(1 − n): .0625 for 5, .03125 for 6."""
    assert least_starts(0.95) == 6
    assert least_starts(simultaneous(2)) == 7  # 1/64 = .0156 ≤ .025
    assert least_starts(simultaneous(10)) == 9  # 1/256 = .0039 ≤ .005 < 1/128
    assert least_starts(1 - 2**-7) == 8
    five = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert paired_ratio([100] * 5, [200] * 5, range(5)) == [(2, 0, INF)]
    assert paired_difference(five, [0.0] * 5, range(5)) == [(3, -INF, INF)]


def test_a_level_is_expanded_as_students_interval_is():
    """n = 6: √(6/5) · 2.5706 = 2.8159, and P(|Z| < 2.8159) = .99514."""
    assert expanded(0.95, 6) == pytest.approx(0.99514, abs=1e-4)
    assert expanded(0.95, 100_000) == pytest.approx(0.95, abs=1e-4)


def test_pairs_are_resampled_together():
    """All 27 resamples of three pairs: shares of each ratio of medians, found by enumeration."""
    arm, baseline = np.array([100.0, 200.0, 400.0]), np.array([100.0, 800.0, 400.0])
    exact = [np.median(baseline[[*i]]) / np.median(arm[[*i]]) for i in itertools.product(range(3), repeat=3)]
    resampled = resamples([0, 1, 2], 50_000)
    ratios = lower_median(baseline[resampled]) / lower_median(arm[resampled])
    assert set(ratios) == set(exact)
    for ratio in set(exact):
        assert np.mean(ratios == ratio) == pytest.approx(np.mean(np.array(exact) == ratio), abs=0.01)


def test_bounds_of_a_ratio_are_those_of_all_resamples():
    """Six pairs have 46,656 equally likely resamples; the bounds are percentiles of their ratios."""
    arm = np.array([100.0, 130.0, 170.0, 220.0, 290.0, 380.0])
    baseline = np.array([450.0, 200.0, 900.0, 310.0, 1200.0, 620.0])
    every = np.array(list(itertools.product(range(6), repeat=6)))
    ratios = lower_median(baseline[every]) / lower_median(arm[every])
    tail = (1 - 0.99514) / 2  # the expanded level
    low, high = np.quantile(ratios, [tail, 1 - tail], method="nearest")
    assert paired_ratio(arm, baseline, range(6)) == [(450 / 170, low, high)]


def test_differences_have_the_interval_of_order_statistics():
    """10 pairs: the 2nd and the 9th difference cover the median with .979; the estimate lies between 5th and 6th."""
    differences = [7.0, 1.0, 9.0, 3.0, 10.0, 2.0, 5.0, 4.0, 8.0, 6.0]
    baseline = np.arange(10) * 100.0
    assert paired_difference(baseline + differences, baseline, range(10)) == [(5.5, 2, 9)]


def test_two_failed_runs_do_not_differ():
    """Differences −∞, 0 and four times 1."""
    ((estimate, low, high),) = paired_difference([-INF, -INF, 2, 2, 2, 2], [1, -INF, 1, 1, 1, 1], range(6))
    assert (estimate, low, high) == (1, -INF, 1)


def test_swapping_arm_and_baseline_inverts_a_ratio():
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(6, 1, 20), rng.lognormal(7, 1, 20)
    a[3], b[4] = INF, INF
    for starts in (TWENTY, [i // 2 for i in TWENTY]):
        ((x, low, high),) = paired_ratio(a, b, starts, budgets=(5000, 9000))
        ((y, low_swapped, high_swapped),) = paired_ratio(b, a, starts, budgets=(9000, 5000))
        assert (y, low_swapped, high_swapped) == pytest.approx((1 / x, 1 / high, 1 / low))


def test_swapping_arm_and_baseline_negates_a_difference():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 20), rng.normal(1, 1, 20)
    a[3], b[4] = -INF, -INF
    for starts in (TWENTY, [i // 2 for i in TWENTY]):
        ((x, low, high),) = paired_difference(a, b, starts)
        assert paired_difference(b, a, starts) == [(-x, -high, -low)]


def test_an_unsolved_median_makes_the_weaker_claim():
    solved, never = [100.0] * 8, [INF] * 8
    assert paired_ratio(never, solved, range(8), budgets=(1000, 2000)) == [(0.1, 0, 0.1)]
    assert paired_ratio(solved, never, range(8), budgets=(1000, 2000)) == [(20, 20, INF)]
    ((estimate, low, high),) = paired_ratio(never, never, range(8), budgets=(1000, 2000))
    assert math.isnan(estimate) and (low, high) == (0, INF)


def test_a_run_solved_at_once_counts_one_step():
    assert paired_ratio([0.0] * 8, [50.0] * 8, range(8)) == [(50, 50, 50)]


def test_runs_of_one_start_are_not_independent():
    """Twelve pairs from six starts that agree within each start: as wide as the six starts alone."""
    by_start = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    ((_, low, high),) = paired_difference(np.repeat(by_start, 2), [0.0] * 12, np.repeat(range(6), 2).tolist())
    assert (low, high) == (1, 6)
    ((_, low, high),) = paired_difference([1.0] * 30, [0.0] * 30, [i // 6 for i in range(30)])
    assert (low, high) == (-INF, INF)  # five starts, however many runs


def test_probability_better_is_clopper_and_pearsons():
    """10 of 10: low is .025^(1/10) = .6915. 5 of 10: .1871 to .8129. Ties count half."""
    ten = list(range(10))
    assert probability_better([2.0] * 10, [1.0] * 10, ten, False) == pytest.approx((1, 0.69150, 1), abs=1e-4)
    half = [2.0] * 5 + [0.0] * 5
    assert probability_better(half, [1.0] * 10, ten, False) == pytest.approx((0.5, 0.18709, 0.81291), abs=1e-4)
    assert probability_better([1.0] * 10, [1.0] * 10, ten, True)[0] == 0.5
    assert probability_better([1.0] * 10, [INF] * 10, ten, True) == pytest.approx((1, 0.69150, 1), abs=1e-4)
    two_starts = [0] * 5 + [1] * 5
    assert probability_better([2.0] * 10, [1.0] * 10, two_starts, False) == pytest.approx((1, 0.15811, 1), abs=1e-4)


def missed(n, level, trials, seed):
    """Share of simulated studies whose intervals miss the true ratio e, difference 0 and probability."""
    rng = np.random.default_rng(seed)
    misses = np.zeros(3)
    for _ in range(trials):
        shared = rng.normal(0, 0.6, n)
        a, b = np.exp(shared + rng.normal(0, 0.6, (2, n)) + [[0], [1]])
        ((_, low, high),) = paired_ratio(1000 * a, 1000 * b, range(n), (level,), draws=1000)
        ((_, least, greatest),) = paired_difference(np.log(a) + 1, np.log(b), range(n), (level,))
        _, rare, often = probability_better(a, b, range(n), True, level)
        misses += [not low <= math.e <= high, not least <= 0 <= greatest, not rare <= norm.cdf(1 / 0.72**0.5) <= often]
    return misses / trials


@pytest.mark.parametrize("n", [6, 10, 20])
def test_paired_intervals_cover_the_truth(n):
    """At most 5 % may miss; 600 trials have a standard error of .009."""
    assert (missed(n, 0.95, 600, seed=n) <= 0.07).all()


@pytest.mark.slow
def test_simultaneous_intervals_cover_the_truth_together():
    """The intervals of ten comparisons: each may miss with .5 %, plus three standard errors of 2,000 trials."""
    assert (missed(12, simultaneous(10), 2000, seed=1) <= 0.005 + 3 * 0.0016).all()


def test_the_interquartile_mean_is_that_of_the_middle_half():
    """Of 1 … 8 the middle four are 3, 4, 5, 6. A failed run in four settings' lowest quarter does not count."""
    settings = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]
    starts = [[0, 1]] * 4
    mean, low, high = interquartile_mean(settings, starts)
    assert mean == 4.5 and low < 4.5 < high
    settings[0][0] = -INF
    assert interquartile_mean(settings, starts)[0] == 4.5
    assert interquartile_mean([[2.0, 2.0], [2.0, 2.0]], [[0, 1]] * 2) == (2, 2, 2)


def test_the_probability_of_improvement_is_the_mean_over_settings():
    """First setting: 3 of 4 pairs of runs and no tie; second: all ties: (.75 + .5) / 2."""
    arm, baseline = [[2.0, 4.0], [1.0, 1.0]], [[1.0, 3.0], [1.0, 1.0]]
    starts = [[0, 1]] * 2
    mean, low, high = probability_of_improvement(arm, baseline, starts, lower=False)
    assert mean == 0.625 and low <= 0.625 <= high
    assert probability_of_improvement(arm, baseline, starts, lower=True)[0] == 0.375
