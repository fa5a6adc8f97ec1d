"""Speed-up study: streaks, intervals, ratios, tuning and tables, worked by hand."""

import math

import numpy as np
import pytest

from benchmarks.speedup import arms, read_rows
from benchmarks.study import report
from benchmarks.study.convergence import FirstStreak, Progress
from benchmarks.study.learner import read, stands
from benchmarks.study.tuning import Race, cells, score, winner
from lightning_nlf.studies.statistics import (
    bootstrap_values,
    clustered_mean_interval,
    faster,
    geometric_mean_interval,
    interval,
    lower_median,
    mean_interval,
    median,
    median_interval,
    ratio_interval,
    speed_up,
)

INF = math.inf


def naive(passed, times=3):
    return next((i for i in range(len(passed) - times + 1) if all(passed[i : i + times])), None)


def test_a_streak_is_the_first_one_and_needs_fewer_tests():
    """In 0 1 1 0 1 1 1 the streak begins at 4; tests run backwards within each window of three."""
    passed, tested = [False, True, True, False, True, True, True], []
    streak = FirstStreak()

    def passes(i):
        tested.append(i)
        return passed[i]

    starts = [streak.search(count, passes) for count in range(len(passed) + 1)]
    assert starts == [None] * 7 + [4]
    assert tested == [2, 1, 0, 3, 6, 5, 4]


def test_a_streak_in_random_rows_is_that_of_trying_all():
    rng = np.random.default_rng(0)
    for share in (0.3, 0.6, 0.9):
        for _ in range(100):
            passed = (rng.random(12) < share).tolist()
            streak = FirstStreak()
            starts = next((x for n in range(13) if (x := streak.search(n, passed.__getitem__)) is not None), None)
            assert starts == naive(passed)


def test_medians_of_resamples_have_the_chances_of_the_binomial():
    """The median of 3 draws from {1, 2, 3} is 1 if at least two draws are 1: 3·(1/9)(2/3) + 1/27 = 7/27."""
    medians = bootstrap_values(lower_median, [3.0, 1.0, 2.0])
    assert np.mean(medians == 1) == pytest.approx(7 / 27, abs=0.005)
    assert np.mean(medians == 3) == pytest.approx(7 / 27, abs=0.005)
    assert interval(medians) == (1, 3)


def test_a_mean_of_few_seeds_has_students_interval():
    """1, 2, 3: 2 ± 4.3027 · 1 / √3. Two starts with the means 1.5 and 4: 2.75 ± 12.7062 · 1.7678 / √2."""
    assert mean_interval([1, 2, 3]) == pytest.approx((2, -0.48414, 4.48414), abs=1e-4)
    assert mean_interval([7.0]) == (7, -INF, INF)
    assert clustered_mean_interval([1, 2, 4, 4], [0, 0, 1, 1]) == pytest.approx((2.75, -13.1328, 18.6328), abs=1e-3)


def test_a_median_of_few_seeds_lies_between_order_statistics():
    """For n = 10 the 2nd and 9th value cover the median with 1 − 22 / 1024 = .979, the 3rd and 8th with .891."""
    assert median_interval([*range(1, 10), INF]) == (5, 2, 9)
    assert median_interval([1, 2, 3, 4, 5]) == (3, -INF, INF)  # the first and fifth value cover only .9375
    assert median_interval([1, 2, 3, 4, 5, 6]) == (3, 1, 6)


def test_a_ratio_has_students_interval_of_its_logarithm():
    """Paired: the ratios 2 and 8 have the logarithms .6931 and 2.0794, 1.3863 ± 12.7062 · .98026 / √2. Unpaired, by
    Welch: variances .2402 and .2402 over 2 each, 2 degrees of freedom, ± 4.3027 · .4901.
    """
    assert ratio_interval([2, 8], [1, 1], paired=True) == pytest.approx((4, 5.99e-4, 26_722), rel=0.01)
    assert ratio_interval([4, 8], [1, 2]) == pytest.approx((4, 4 / 8.239, 4 * 8.239), rel=1e-3)
    assert geometric_mean_interval([3, 3, 3]) == pytest.approx((3, 3, 3))


def test_a_budget_bounds_what_a_failed_arm_may_be():
    assert speed_up([20.0] * 5, [INF] * 5, budget=40) == (0.5, 0, 0.5)


def test_a_speed_up_by_hand():
    assert median([4.0, 1.0, INF, 2.0]) == 2  # the lower median
    assert speed_up([20.0] * 5, [5.0] * 5) == (4, 4, 4)
    assert speed_up([20.0] * 5, [INF] * 5) == (0, 0, 0)  # a failed arm is not faster
    assert speed_up([INF] * 5, [5.0] * 5) == (INF, INF, INF)
    assert speed_up([20.0], [5.0]) == (4, 4, 4)


def test_the_lower_bound_falls_with_the_number_of_comparisons():
    rng = np.random.default_rng(0)
    slow, fast = rng.lognormal(2, 1, 50), rng.lognormal(0, 1, 50)
    assert speed_up(slow, fast, 1 - 0.05 / 40)[1] < speed_up(slow, fast)[1] < speed_up(slow, fast)[0]


def test_the_chance_to_be_faster_by_hand():
    """The second is faster in 3 of the pairs (2, 1), (2, 3), (∞, 1), (∞, 3); ties count half."""
    assert faster([2, INF], [1, 3])[0] == 0.75
    assert faster([1, 1], [1, 1])[0] == 0.5


def test_a_grid_by_hand():
    assert cells({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert len(cells({})) == 1


def outcome(sust, sto):
    return {"sust": {"steps": sust}, "sto": {"steps": sto}}


def test_a_cell_is_chosen_by_both_measures():
    """The medians (100, 400) have the geometric mean 200, (150, 200) 173; if half fail, fewer failures are better."""
    assert score({"sust": [100.0] * 3, "sto": [400.0] * 3}) == 200
    assert winner([[outcome(100, 400)] * 3, [outcome(150, 200)] * 3]) == 1
    failing = [outcome(INF, INF)] * 2
    assert winner([[*failing, outcome(INF, INF)], [*failing, outcome(100, INF)]]) == 1


def finished(progress, steps):
    progress.finish({"decided": steps, "lost": False} | outcome(steps, steps))


def test_a_cell_is_stopped_only_when_it_can_no_longer_win():
    """Cell 0 has the score 100. Cell 1 has the lower bound 90, and can win; then 110, and cannot."""
    race = Race(2, 3)
    for progress in race.progress[0]:
        finished(progress, 100)
    for bound, stopped in ((90, False), (110, True)):
        for progress in race.progress[1]:
            progress.open = {"sust": bound, "sto": bound}
        race.watch()
        assert [p.stopped for p in race.progress[1]] == [stopped] * 3
    assert not any(p.stopped for p in race.progress[0])


def test_a_run_that_was_stopped_is_not_taken_for_a_failure():
    progress = Progress()
    progress.finish({"decided": 50, "lost": True} | outcome(INF, INF))
    assert progress.solved == {}
    progress.finish({"decided": 50, "lost": False} | outcome(40, INF))
    assert progress.solved == {"sust": 40, "sto": INF}


def test_half_a_line_of_a_killed_run_is_no_run(tmp_path):
    (tmp_path / "runs").write_text('{"run": "a", "x": 1}\n{"run": "b", "x"')
    assert read_rows(tmp_path / "runs") == {"a": {"run": "a", "x": 1}}
    assert read_rows(tmp_path / "none") == {}


@pytest.mark.parametrize("name", arms())
def test_every_arm_can_be_built_in_its_first_and_last_cell(name):
    arm = arms()[name]
    grid = cells(arm["grid"])
    assert len(grid) == (16 if arm["grid"] else 1)
    for cell in (grid[0], grid[-1]):
        module, data, _ = read(arm["yaml"], arm["changes"] | cell, seed=3)
        assert data.seed == 3
        for key, value in cell.items():  # a misspelt key would tune nothing
            if key == "model.lr":
                assert value in [group["lr"] for group in module.configure_optimizers().param_groups]
                continue
            *path, last = key.split(".")[1:]
            owner = module if key.startswith("model") else data
            for part in path:
                owner = owner if part == "init_args" else getattr(owner, part)
            assert getattr(owner, last) == value


def ran(steps, curve=()):
    return {"seed": 1000, "decided": 500, "curves": {"sust": list(curve), "sto": []}} | {
        mode: {"steps": steps, "labels": 7.0, "updates": 1.0} for mode in ("sust", "sto")
    }


def test_a_curve_keeps_the_last_episode_that_was_evaluated():
    """The grid begins at 100 steps: 0 before 150, then 20, then 900 from 1,000 on."""
    (curve,) = report.curve([ran(INF, [(1000.0, 900.0), (150.0, 20.0)])], "sust")
    at = dict(zip(report.GRID.round().tolist(), curve.tolist(), strict=True))
    assert at[100.0] == 0 and curve[-1] == 900
    assert {value for steps, value in at.items() if 150 <= steps < 1000} == {20.0}


def test_a_row_of_the_table_by_hand():
    """REINFORCE takes 2,000 steps in all runs and the arm 500: the ratio is 4 without spread, faster in every pair."""
    figures = report.summary({"joint/all": [ran(500.0)] * 6}, [ran(2000.0)] * 6, {"joint/all": 10_000}, comparisons=2)
    row = report.table(figures, "all").splitlines()[-1]
    cells_of_measure = "500 [500, 500] | 0/6 | 4 (4.0–4.0) | **4.0** | 1.00"
    assert row == f"| joint | {cells_of_measure} | {cells_of_measure} | 7 |"
    assert report.table(figures, "weak").count("\n") == 1  # a header without rows


def test_an_arm_that_its_budget_ended_is_known_to_be_slower_than_that():
    """REINFORCE takes 2,000 steps. An arm stopped at 1,000 is less than twice as fast; within 1,000 steps neither
    solves the task, so P(faster) is ½. An arm stopped at 4,000 is less than half as fast, and slower in every pair.
    """
    for budget, ratio, chance in ((1_000, "< 2.0 (0–2.0)", "0.50"), (4_000, "< 0.50 (0–0.50)", "0.00")):
        figures = report.summary({"ppo/all": [ran(INF)] * 6}, [ran(2000.0)] * 6, {"ppo/all": budget}, comparisons=2)
        row = report.table(figures, "all").splitlines()[-1]
        cells_of_measure = f">{budget:,} [>{budget:,}, >{budget:,}] | 6/6 | {ratio} | **0** | {chance}"
        assert row == f"| ppo | {cells_of_measure} | {cells_of_measure} | 7 |"


def test_json_has_no_infinity():
    assert report.plain({"a": [INF, 1.0], "b": (2,)}) == {"a": [None, 1.0], "b": [2]}


def test_a_yaml_that_is_an_arm_as_it_stands():
    assert stands("pendulum/joint", {"data.episodes": 2, "model.lr": 0.02})
    assert not stands("pendulum/joint", {"data.episodes": 1})
    assert not stands("pendulum/joint", {"data.label_budget": 50})
