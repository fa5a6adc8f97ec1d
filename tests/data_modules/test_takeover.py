"""Plans of take-overs: shapes, statistics, reproducibility."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from data_modules.takeover import (
    Always,
    Geometric,
    ReverseCurriculum,
    Takeover,
    Uniform,
    Window,
)
from lightning_nlf.maths.schedules import Linear


class Nobody(Takeover):
    """A kind of take-over that overrides nothing."""


RANDOM = [Geometric(), Uniform(), Uniform(0.5), Window(), ReverseCurriculum(3, 9, 100, probability=0.5)]
EVERY = [*RANDOM, ReverseCurriculum(3, 9, 100, 2), Always(), Nobody()]


def plan(takeover: Takeover, episodes: int, horizon: int, typical_length: float = 50.0, seed: int = 0, **options):
    return takeover.plan(episodes, horizon, typical_length, np.random.default_rng(seed), **options)


def own_steps(expert_acts: torch.Tensor) -> torch.Tensor:
    """Steps before the expert first acts; the horizon if it never does."""
    return torch.where(expert_acts.any(1), expert_acts.float().argmax(1), expert_acts.shape[1])


@pytest.mark.parametrize("takeover", EVERY, ids=lambda takeover: type(takeover).__name__)
def test_shape_type_and_reproducibility(takeover):
    for episodes, horizon in [(0, 5), (1, 1), (7, 1000)]:
        expert_acts = plan(takeover, episodes, horizon)
        assert expert_acts.shape == (episodes, horizon)
        assert expert_acts.dtype == torch.bool
    assert torch.equal(plan(takeover, 50, 100, seed=3), plan(takeover, 50, 100, seed=3))


@pytest.mark.parametrize("takeover", RANDOM, ids=lambda takeover: type(takeover).__name__)
def test_another_seed_is_another_plan(takeover):
    assert not torch.equal(plan(takeover, 50, 100, seed=3), plan(takeover, 50, 100, seed=4))


@pytest.mark.parametrize("takeover", [Geometric(), Uniform(), Uniform(0.5)])
def test_once_taken_over_the_expert_acts_to_the_end(takeover):
    expert_acts = plan(takeover, 200, 80)
    assert (expert_acts[:, 1:] >= expert_acts[:, :-1]).all()


def test_geometric_counts_the_learners_own_steps():
    """p = .4: P(0) = .4, P(1) = .24, mean .6/.4 = 1.5, std √.6/.4 = 1.94. For 20,000 rows the standard error of the
    mean is .0137, of a share at most √(.24)/141 = .0035; the test allows four of each."""
    n = own_steps(plan(Geometric(0.4), 20_000, 200)).float()
    assert n.mean().item() == pytest.approx(1.5, abs=4 * 0.0137)
    assert (n == 0).float().mean().item() == pytest.approx(0.4, abs=4 * 0.0035)
    assert (n == 1).float().mean().item() == pytest.approx(0.24, abs=4 * 0.0035)


def test_geometric_with_p_one_is_always_and_a_tiny_p_is_never():
    assert plan(Geometric(1.0), 10, 20).all()
    assert not plan(Geometric(1e-12), 10, 20).any()


def test_geometric_leaves_rows_between_alone():
    """Every second row, the first one being the learner's; the distribution in injected rows is the same as ever."""
    forked = plan(Geometric(0.4, every=2), 7, 200)
    assert forked.any(1).tolist() == [False, True] * 3 + [False]
    assert torch.equal(forked[1::2], plan(Geometric(0.4), 7, 200)[1::2])


def test_uniform_starts_anywhere_in_the_typical_length():
    """40 equally likely points: mean 19.5, variance (40² − 1)/12, std 11.54; 20,000 rows have standard error .0816."""
    n = own_steps(plan(Uniform(), 20_000, 100, typical_length=40.0)).float()
    assert n.min() == 0 and n.max() == 39
    assert n.mean().item() == pytest.approx(19.5, abs=4 * 0.0816)


def test_uniform_leaves_the_rest_of_the_episodes_alone():
    """A share of .25 in 20,000 rows has standard error √(.25 · .75)/141 = .0031."""
    taken_over = plan(Uniform(0.25), 20_000, 100).any(1).float().mean().item()
    assert taken_over == pytest.approx(0.25, abs=4 * 0.0031)


@pytest.mark.parametrize("typical_length", [0.3, 12.5, 1e6])
def test_a_start_may_lie_past_the_horizon_but_not_past_the_typical_length(typical_length):
    n = own_steps(plan(Uniform(), 500, 30, typical_length=typical_length))
    assert n.max() == min(30, math.ceil(typical_length) - 1)


def test_window_is_one_run_of_its_length_and_the_learner_again():
    """Starts below 40 and length 7: it ends before 60, so each injected row has a run of 7 True."""
    expert_acts = plan(Window(length=7, probability=0.25), 20_000, 60, typical_length=40.0)
    steps = expert_acts.sum(1)
    assert set(steps.tolist()) == {0, 7}
    assert (steps == 7).float().mean().item() == pytest.approx(0.25, abs=4 * 0.0031)
    injected = expert_acts[steps == 7].float()
    assert (injected.diff(dim=1).abs().sum(1) <= 2).all()
    assert own_steps(injected.bool()).max() == 39


def test_window_is_cut_by_the_horizon():
    assert plan(Window(length=50, probability=1.0), 500, 30, typical_length=30.0).sum(1).max() == 30


@pytest.mark.parametrize("kind", [Uniform, Window, partial(ReverseCurriculum, 3, 9, 100)])
def test_a_scheduled_probability_is_that_of_the_moment(kind):
    """From .8 to .2 over 100 steps: .5 after 50, and .2 from then on. The same random numbers give the same plan."""
    annealed = kind(probability=Linear(0.8, 0.2, 100))
    for experience, probability in [(0, 0.8), (50, 0.5), (100, 0.2), (10**9, 0.2)]:
        expected = plan(kind(probability=probability), 200, 30, experience=experience)
        assert torch.equal(plan(annealed, 200, 30, experience=experience), expected)
    assert plan(annealed, 200, 30).sum() > plan(annealed, 200, 30, experience=100).sum()


@pytest.mark.parametrize("schedule", [0.3, Linear(0.3, 0.0, 10)])
def test_without_experience_a_schedule_is_at_its_start(schedule):
    assert torch.equal(plan(Uniform(schedule), 50, 20), plan(Uniform(0.3), 50, 20))


def test_annealed_away_nothing_is_injected():
    assert not plan(Window(probability=Linear(1.0, 0.0, 10)), 100, 60, experience=10).any()


@pytest.mark.parametrize(("experience", "first"), [(0, 4), (25, 8), (50, 12), (100, 20), (10**9, 20)])
def test_the_curriculum_moves_later(experience, first):
    """From step 4 to 20 over 100 steps: 4 + 16 · 25/100 = 8 after a quarter."""
    to_the_end = plan(ReverseCurriculum(4, 20, 100), 5, 30, experience=experience)
    assert to_the_end.tolist() == [[False] * first + [True] * (30 - first)] * 5
    window = plan(ReverseCurriculum(4, 20, 100, length=3), 5, 30, experience=experience)
    assert window.tolist() == [[False] * first + [True] * 3 + [False] * (27 - first)] * 5


def test_the_curriculum_in_some_of_the_episodes():
    taken_over = plan(ReverseCurriculum(0, 9, 100, probability=0.25), 20_000, 20)
    assert taken_over.any(1).float().mean().item() == pytest.approx(0.25, abs=4 * 0.0031)
    assert set(taken_over.sum(1).tolist()) == {0, 20}


@pytest.mark.parametrize("takeover", [Always(), Window(30, 1.0)])
def test_the_expert_throughout(takeover):
    assert plan(takeover, 20, 30, typical_length=1.0).all()


@pytest.mark.parametrize("takeover", [Nobody(), Uniform(0.0), Window(5, 0.0)])
def test_the_learner_throughout(takeover):
    assert not plan(takeover, 20, 30).any()


def test_a_plan_looks_at_nothing_and_keeps_nothing():
    for takeover in EVERY:
        assert takeover.asks is None and takeover.state_dict() == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Geometric(0), r"p: got 0, must be in \(0, 1\]"),
        (lambda: Geometric(1.5), "p: got 1.5"),
        (lambda: Geometric(math.nan), "p: got nan"),
        (lambda: Uniform(-0.1), r"probability: got -0.1, must be in \[0, 1\]"),
        (lambda: Window(probability=2), "probability: got 2"),
        (lambda: Window(length=0), "length: got 0"),
        (lambda: Uniform(math.nan), "probability: got nan"),
        (lambda: Geometric(every=0), "every: got 0"),
        (lambda: Window(probability=Linear(1.5, 0.0, 10)), "probability: got 1.5"),
        (lambda: Uniform(Linear(0.5, -0.5, 10)), "probability: got -0.5"),
        (lambda: ReverseCurriculum(-1, 5, 10), "start: got -1"),
        (lambda: ReverseCurriculum(1, -5, 10), "end: got -5"),
        (lambda: ReverseCurriculum(1, 5, 0), "over: got 0"),
        (lambda: ReverseCurriculum(1, 5, 10, length=0), "length: got 0"),
        (lambda: ReverseCurriculum(1, 5, 10, probability=2), "probability: got 2"),
        (lambda: plan(Always(), -1, 5), "episodes: got -1"),
        (lambda: plan(Uniform(), 3, 0), "horizon: got 0"),
        (lambda: plan(Uniform(), 3, 5, typical_length=0), "typical_length: got 0"),
        (lambda: plan(Uniform(), 3, 5, typical_length=math.inf), "typical_length: got inf"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", ["ValueTriggered", "Window", "data_modules.text.AtFirstError"])
def test_a_command_may_name_each_kind(kind):
    """jsonargparse compares the annotations of each method with those of the protocol."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--takeover", type=Takeover)
    assert type(parser.instantiate(parser.parse_args(["--takeover", kind])).takeover).__name__ == kind.split(".")[-1]
