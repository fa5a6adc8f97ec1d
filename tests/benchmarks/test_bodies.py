"""Figures of the bodies benchmark: confirmed thresholds, failed runs, and ratios as lower bounds."""

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # scripts are not installed

from benchmarks import bodies  # noqa: E402

CURVE = [(10, 1, 5.0), (20, 2, 9.0), (30, 3, 4.0), (40, 4, 9.0), (50, 5, 8.0), (60, 6, 9.0), (70, 7, 1.0)]


def test_a_threshold_is_reached_at_the_first_of_three_in_a_row():
    """The evaluation at 20 is not confirmed; from 40 on three in a row reach the threshold."""
    assert bodies.reached(CURVE, 8.0) == {"steps": 40, "labels": 4}
    assert bodies.reached(CURVE, 4.0) == {"steps": 10, "labels": 1}
    assert bodies.reached(CURVE, 9.0) == {"steps": math.inf, "labels": 7}
    assert bodies.reached(CURVE[:5], 8.0)["steps"] == math.inf  # the third evaluation is missing


def test_a_ratio_by_hand():
    """Equal seeds give a point interval; then the geometric means are √(20·80) = 40 and √(5·20) = 10."""
    assert bodies.ratio([10, 10, 10], [30, 30, 30], budget=100) == pytest.approx((3, 3, 3))
    assert bodies.ratio([5, 20], [20, 80], budget=100)[0] == pytest.approx(4)


def test_a_ratio_is_a_lower_bound():
    """A failed run of PPO counts as the budget; an arm with a failed run is infinitely slow."""
    assert bodies.ratio([10, 10, 10], [math.inf] * 3, budget=100) == pytest.approx((10, 10, 10))
    assert bodies.ratio([10, 10, math.inf], [50, 50, 50], budget=100) == (0, 0, math.inf)
    assert bodies.ratio([10, 40], [16, math.inf], budget=100)[0] == pytest.approx(40 / 20)


def test_thresholds_are_shares_of_the_expert_or_returns():
    assert bodies.BODIES["double_pendulum"].returns(1234.0) == {"9000": 9000.0}
    assert bodies.BODIES["hopper"].returns(3000.0)["half of the expert"] == 1500


def test_the_tables_have_a_row_for_every_arm():
    rows = [
        {"body": "hopper", "arm": arm, "seed": seed, "curve": CURVE}
        | {"reached": {name: bodies.reached(CURVE, 8.0) for name in bodies.BODIES["hopper"].thresholds}}
        for arm in bodies.ARMS
        for seed in range(6)
    ]
    text = bodies.tables(rows, {"hopper": {"return": 16.0, "return_sampled": 15.0, "best_after": 100.0}})
    for arm in bodies.ARMS:
        assert f"| bodies/hopper_{arm} | half of the expert: 8 | 6/6 | 40 [40, 40] | 4 [4, 4] |" in text
    assert "| 1.0 [1.0, 1.0] |" in text
