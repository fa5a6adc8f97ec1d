"""The score of a cell and the order of cells, by hand-worked values."""

import math
from pathlib import Path

import pytest

from lightning_nlf.studies.choice import edges, score
from lightning_nlf.studies.runs import Point, Result, Run
from lightning_nlf.studies.spec import Arm, Range, Solved, Study


def study(**values):
    arm = Arm("joint", ("--config", "fit.yaml"), {}, {"lr": (1, 2)}, values.pop("budgets", {"env_steps": 100}))
    values = {"solved": Solved(10), **values}
    return Study(
        "s", Path("s.yaml"), Path("s"), {"joint": arm}, {"joint": "joint"}, "val/return", (0,), (9,), {}, **values
    )


def solved_after(**counters):
    """A run that reaches the threshold at these counters; not at all without."""
    return Result(Run("joint", "tune", {}, 0), (Point(counters, 10),) if counters else (Point({"env_steps": 1}, 0),))


def steps(*values):
    return [solved_after(**({} if value is None else {"env_steps": value})) for value in values]


def test_the_lower_median_of_the_steps():
    """Of an even number of seeds, half may fail: the median is the lower of the two in the middle."""
    assert vars(score(steps(40, 10, 30, 20), study())) == {"value": 20, "failures": 0, "rest": 20, "seeds": 4}
    assert vars(score(steps(40, None, 30, None), study())) == {"value": 40, "failures": 2, "rest": 30, "seeds": 4}
    assert score(steps(None, None, 30), study()).value == math.inf
    assert score(steps(101), study()).failures == 1  # beyond the budget


def test_the_geometric_mean_over_counters():
    """Medians of 20 environment steps and 5 labels: sqrt(20 * 5) = 10."""
    rows = [solved_after(env_steps=e, labels=x) for e, x in ((20, 5), (10, 2), (30, 9))]
    two = study(budgets={"env_steps": 100, "labels": 50})
    assert score(rows, two).value == pytest.approx(10)
    assert score([*rows, solved_after(env_steps=20, labels=60)], two).failures == 1


def test_the_mean_of_the_metric():
    rows = [Result(Run("joint", "tune", {}, 0), (Point({"env_steps": 1}, x),), why) for x, why in ((3, ""), (5, ""))]
    assert score(rows, study(solved=None)).value == 4
    crash = Result(Run("joint", "tune", {}, 0), (), "out of memory")
    assert vars(score([*rows, crash], study(solved=None))) == {"value": -math.inf, "failures": 1, "rest": 4, "seeds": 3}
    assert score([*rows, crash], study(solved=None, higher=False)).value == math.inf


def test_without_a_median_the_fewest_failures_then_the_lowest_median_win():
    cells = [
        steps(None, None, 5),
        steps(None, None, None),
        steps(None, None, 4),
        steps(50, 60, None),
        steps(50, 55, 60),
    ]
    ranks = [score(cell, study()).rank(study()) for cell in cells]
    assert sorted(range(5), key=ranks.__getitem__) == [4, 3, 2, 0, 1]
    values = [score(cell, study()).finite() for cell in cells]  # Optuna's order, without the last rule
    assert values[4] == 55 and values[3] == 60 and values[3] < values[0] == values[2] < values[1] < math.inf


def test_edges():
    grid = {"lr": (0.1, 0.3, 0.2), "kind": ("a", "b"), "flag": (False, True), "one": (3,)}
    assert edges({"lr": 0.3, "kind": "a", "flag": True, "one": 3}, grid) == ["lr 0.3 is the largest"]
    assert edges({"lr": 0.1}, grid) == ["lr 0.1 is the smallest"] and not edges({"lr": 0.2}, grid)


def test_edges_of_a_range():
    """On a log scale from 0.001 to 1, 0.0012 is 2.6 % from the lower end and 0.05 is 57 %."""
    grid = {"lr": Range(0.001, 1, True)}
    assert edges({"lr": 0.0012}, grid) == ["lr 0.0012 is close to the smallest, 0.001"]
    assert not edges({"lr": 0.05}, grid)
    assert edges({"lr": 97.0}, {"lr": Range(0, 100)}) == ["lr 97 is close to the largest, 100"]
