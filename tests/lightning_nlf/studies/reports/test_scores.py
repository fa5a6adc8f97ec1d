"""Figures of runs, worked by hand."""

import math

import pytest

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies.scores import figure, judged_point
from lightning_nlf.studies.spec import Solved

INF, NAN = math.inf, math.nan


def steps(study, run):
    return figure(run, study, "env_steps", run.run.stage)


def test_a_run_is_solved_at_the_first_validation_of_its_streak(study_of, run_of):
    """0 1 0 1 1 1: the first three in a row begin at the fourth validation, at 400 steps."""
    study = study_of(solved=Solved(1.0, 3))
    run = run_of([0, 1, 0, 1, 1, 1])
    assert steps(study, run) == 400
    assert figure(run, study, "optimizer_steps", "report") == 40
    assert judged_point(run, study, "env_steps", "report") == run.points[3]


def test_a_streak_must_end_within_the_budget(study_of, run_of):
    run = run_of([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1])  # from 900 to 1,100 steps
    assert steps(study_of(solved=Solved(1.0, 2)), run) == 900
    assert steps(study_of(solved=Solved(1.0, 3)), run) == INF
    assert steps(study_of(solved=Solved(1.0, 3), budgets={"env_steps": 1100}), run) == 900


def test_a_lower_metric_is_solved_from_above(study_of, run_of):
    study = study_of(solved=Solved(0.5, 1), higher=False)
    assert steps(study, run_of([2, 1, 0.5])) == 300
    assert steps(study, run_of([-INF, NAN, 0.4])) == 300  # what is not finite solves nothing


def test_a_failed_run_is_not_solved(study_of, run_of):
    study = study_of(solved=Solved(1.0, 1))
    assert steps(study, run_of([1, 1], failure="killed")) == INF
    assert steps(study, run_of([], failure="killed")) == INF


def test_without_a_threshold_the_last_validations_within_the_budget_count(study_of, run_of):
    """Validations at 100 … 1,100 steps; the last one is past the budget of 1,000."""
    run = run_of(range(11))
    assert steps(study_of(), run) == 9
    assert steps(study_of(last=3), run) == 8  # (7 + 8 + 9) / 3
    assert steps(study_of(last=50), run) == 4.5  # (0 + … + 9) / 10
    assert steps(study_of(budgets={"optimizer_steps": 25}), run) == 10  # no limit of environment steps
    assert figure(run, study_of(budgets={"optimizer_steps": 25}), "optimizer_steps", "report") == 1


@pytest.mark.parametrize("higher, worst", [(True, -INF), (False, INF)])
def test_a_failed_run_has_the_worst_metric(study_of, run_of, higher, worst):
    study = study_of(higher=higher, last=2)
    assert steps(study, run_of([1, 2], failure="killed")) == worst
    assert steps(study, run_of([1, NAN])) == worst
    assert steps(study, run_of([1, INF])) == worst
    assert steps(study, run_of([NAN, 2, 4])) == 3  # an earlier NaN does not count
    assert steps(study, run_of([])) == worst


def test_a_stage_has_its_budget(study_of, run_of):
    study = study_of()
    vars(study.arms["joint"])["tune_budgets"] = {"env_steps": 300}
    assert figure(run_of(range(11), stage="tune"), study, "env_steps", "tune") == 2


def test_a_budget_of_a_counter_that_runs_lack_is_refused(study_of, run_of):
    study = study_of(budgets={"tokens": 5})
    with pytest.raises(ConfigurationError, match=r"demo.yaml: budgets.tokens: .* arm joint .* env_steps, iteration"):
        figure(run_of([1]), study, "tokens", "report")


def test_an_arm_without_a_budget_need_not_count(study_of, run_of):
    study = study_of(budgets={})
    assert figure(run_of([1, 2]), study, "feedback_calls", "report") == 2
    assert math.isnan(figure(run_of([1, 2]), study_of(budgets={}, solved=Solved(1.0)), "feedback_calls", "report"))
