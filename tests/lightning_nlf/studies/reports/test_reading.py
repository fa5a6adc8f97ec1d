"""Sentences of a report: each case, and bounds that are rounded to the weaker claim."""

import math

import pytest

from lightning_nlf.studies.comparison import Comparison
from lightning_nlf.studies.reading import decimals, sentence
from lightning_nlf.studies.spec import Solved
from lightning_nlf.studies.summary import ArmFigures, Summary, summarize

INF = math.inf


@pytest.fixture
def say(study_of):
    """Sentence on `joint`, given its simultaneous bounds and the number of seeds, starts and unsolved runs."""

    def build(low, high, pairs=20, starts=None, unsolved=0, failures=0, planned=1, **changes):
        study = study_of(**changes)
        figures = ArmFigures(dict.fromkeys(range(pairs), 1.0), 1.0, (1.0, 1.0), unsolved, failures, 40000.0, {})
        bounds = (1.0, low, high)
        comparison = Comparison("joint", "base", "env_steps", pairs, starts or pairs, bounds, bounds, bounds)
        summary = Summary({"env_steps": {"base": figures, "joint": figures}}, [comparison], planned, {})
        return sentence(study, summary, "joint", "env_steps")

    return build


STEPS = {"solved": Solved(1.0)}


@pytest.mark.parametrize(
    "low, high, text",
    [
        (4.19, 9, "joint needs fewer environment steps than base: at least 4.1 times fewer, over 20 seeds."),
        (41.9, 90, "joint needs fewer environment steps than base: at least 41 times fewer, over 20 seeds."),
        (1.04, 9, "joint needs fewer environment steps than base, over 20 seeds."),
        (0, 0.4, "joint needs more environment steps than base: at least 2.5 times more, over 20 seeds."),
        (0, 0.239, "joint needs more environment steps than base: at least 4.1 times more, over 20 seeds."),
        (0, 0, "joint needs more environment steps than base, over 20 seeds."),
        (
            0.456,
            1.23,
            "joint is not shown to differ from base in environment steps: "
            "the ratio may be anywhere in [0.45, 1.3], over 20 seeds.",
        ),
        (
            1,
            INF,
            "joint is not shown to differ from base in environment steps: "
            "the ratio may be anywhere in [1.0, ∞], over 20 seeds.",
        ),
    ],
)
def test_steps(say, low, high, text):
    assert say(low, high, **STEPS) == text


@pytest.mark.parametrize(
    "low, high, higher, text",
    [
        (0.0129, 0.5, True, "joint is better than base: its val/return is higher by at least 0.012, over 20 seeds."),
        (-0.5, -0.0129, True, "joint is worse than base: its val/return is lower by at least 0.012, over 20 seeds."),
        (-0.5, -0.0129, False, "joint is better than base: its val/return is lower by at least 0.012, over 20 seeds."),
        (129.9, 140, False, "joint is worse than base: its val/return is higher by at least 129, over 20 seeds."),
        (INF, INF, True, "joint is better than base: its val/return is higher, over 20 seeds."),
        (
            -0.0121,
            0.201,
            True,
            "joint is not shown to differ from base in val/return: "
            "the difference may be anywhere in [-0.02, 0.21], over 20 seeds.",
        ),
    ],
)
def test_metrics(say, low, high, higher, text):
    assert say(low, high, higher=higher) == text


def test_few_seeds_make_no_claim(say):
    assert say(4, 9, pairs=5, **STEPS) == "joint: no claim is made from 5 seeds; at least 6 are needed."
    assert say(4, 9, pairs=1) == "joint: no claim is made from 1 seed; at least 6 are needed."
    text = "joint: no claim is made from 8 seeds; at least 9 are needed with 10 comparisons."
    assert say(4, 9, pairs=8, planned=10) == text
    assert say(4, 9, pairs=20, starts=5) == "joint: no claim is made from 5 starts; at least 6 are needed."
    assert "no claim" not in say(4, 9, pairs=6)


def test_starts_are_named_where_seeds_share_them(say):
    text = "joint needs fewer environment steps than base: at least 4.0 times fewer, over 20 seeds from 10 starts."
    assert say(4, 9, starts=10, **STEPS) == text


def test_runs_that_were_not_solved_or_failed_are_counted(say):
    end = "within 40,000 environment steps."
    solved = "of its 20 runs solved the task"
    assert say(4, 9, unsolved=2, **STEPS).endswith(f"over 20 seeds. 18 {solved}; the others did not {end}")
    assert say(4, 9, unsolved=1, **STEPS).endswith(f"over 20 seeds. 19 {solved}; the other did not {end}")
    assert say(4, 9, unsolved=20, **STEPS).endswith(f"over 20 seeds. None {solved} {end}")
    assert say(4, 9, failures=2).endswith("over 20 seeds. 2 of its 20 runs failed and count as the worst.")


def test_an_arm_without_runs_and_the_baseline(study_of, run_of):
    study = study_of()
    runs = [run_of([1.0], "base", seed) for seed in study.report]
    summary = summarize(study, runs)
    assert sentence(study, summary, "joint", "env_steps") == "joint has no runs yet."
    assert sentence(study, summary, "base", "env_steps") == "base is the baseline."
    alone = summarize(study, [run_of([1.0], "joint", seed) for seed in study.report])
    assert sentence(study, alone, "joint", "env_steps") == "joint cannot be compared with base in environment steps."


def test_two_significant_digits():
    assert [decimals(x) for x in (123, 12, 1.2, 0.12, 0.012, 0, INF)] == [0, 0, 1, 2, 3, 0, 0]
    assert decimals(0.001, -1.5) == 1
