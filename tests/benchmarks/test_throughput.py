"""Evaluation of the figures of `benchmarks/throughput.py`, without measurements."""

import math
import sys

import numpy as np
import pytest

from benchmarks import throughput
from benchmarks.side_by_side import closed_loop, shares
from benchmarks.side_by_side.closed_loop import Clock, balances, law, sustained
from benchmarks.side_by_side.report import Claim, claims, report_text
from data_modules.pendulum.simulator import InvertedPendulum


def test_solved_is_the_first_of_three_in_a_row():
    assert sustained([False, True, True, False, True, True, True, True]) == 4
    assert sustained([True, True, True]) == 0
    assert sustained([True, True, False, True, True]) is None
    assert sustained([]) is None


def test_a_ratio_is_claimed_by_its_lower_bound():
    """Paired ratios 2 and 8 have the geometric mean 4, with an interval from far below 1 to far above it. A common
    slowdown cancels: 10 and 1,000 over 5 and 500 is 2 in both repeats.
    """
    claim = Claim("sooner", "peer", "ours", target=2)
    middle, low, high = claim.bounds({"peer": [20.0, 80.0], "ours": [10.0, 10.0]})
    assert middle == pytest.approx(4) and low < 0.01 and high > 1000 and not claim.is_met(low, high)
    assert claim.bounds({"peer": [10.0, 1000.0], "ours": [5.0, 500.0]}) == pytest.approx((2, 2, 2))
    assert not claim.is_met(1.9, 30) and claim.is_met(2.1, 30)


def test_a_figure_is_claimed_by_the_bound_of_its_side():
    """2, 4, 8 have the geometric mean 4; the logarithm has ± 4.3027 · .6931 / √3, a factor of 5.595."""
    claim = Claim("steps/s", "ours", target=0.7)
    middle, low, high = claim.bounds({"ours": [2.0, 4.0, 8.0]})
    assert (middle, low, high) == pytest.approx((4, 4 / 5.595, 4 * 5.595), rel=1e-3) and claim.is_met(low, high)
    assert not Claim("µs", "ours", target=8, at_most=True).is_met(low, high)


def test_runs_that_never_solve_count_as_infinite():
    claim = Claim("sooner", "peer", "ours")
    assert claim.bounds({"peer": [10.0], "ours": [math.inf]}) == (0.0, 0.0, 0.0)
    assert claim.bounds({"peer": [math.inf], "ours": [2.0]}) == (math.inf, math.inf, math.inf)
    assert claim.bounds({"peer": [math.inf], "ours": [math.inf]}) == (0.0, 0.0, 0.0)


def test_an_evaluation_passes_with_a_mean_of_950():
    simulator, rng = InvertedPendulum(threads=1), np.random.default_rng(0)
    assert balances(law("linear"), simulator, rng)
    assert not balances(lambda obs: 0 * obs[:, :1], simulator, rng)


@pytest.mark.parametrize(("fall_at", "passed"), [(499, False), (500, True)])
def test_one_of_ten_episodes_may_miss_half_its_steps(fall_at, passed):
    """Nine episodes of 1000 and one of 500 have a mean of 950. The step at which the pole falls has no reward."""

    class Falling:
        time_limit = 1000
        t = -1

        def reset(self, episodes, rng):
            return np.zeros((episodes, 5))

        def observe(self, states):
            return states[:, 1:]

        def step(self, states, actions):
            self.t += 1
            fallen = np.zeros(len(states), dtype=bool)
            fallen[0] = self.t == fall_at
            return states, 1.0 - fallen, fallen

    assert balances(law("linear"), Falling(), np.random.default_rng(0)) is passed


def test_the_clock_stands_still_while_a_learner_is_evaluated(monkeypatch):
    """Evaluations happen at 100, 220, 320, 420 and 520 steps, not at 50 and 180. Four seconds pass before each call and
    ten in each evaluation. The verdicts are no, no, yes, yes, yes: solved at 320 steps after 5 × 4 seconds."""
    now = [0.0]
    verdicts = iter([False, False, True, True, True])

    def evaluated(act, simulator, rng):
        now[0] += 10
        return next(verdicts)

    monkeypatch.setattr(closed_loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(closed_loop, "balances", evaluated)
    clock, over = Clock(0), []
    for steps in (50, 100, 180, 220, 320, 420, 520):
        now[0] += 4
        over.append(clock.over(steps, law("linear")))
    assert over == [False] * 6 + [True]
    assert clock.result() == {"value": 20.0, "steps": 320.0}


def test_the_law_as_a_network_is_the_law():
    obs = np.random.default_rng(0).uniform(-0.05, 0.05, (100, 4))
    assert np.abs(law("network")(obs) - law("linear")(obs)).max() < 1e-3


def test_a_timed_call_within_another_counts_once(monkeypatch):
    """Outer takes 1 s, then inner 2 s, then outer 3 s. A generator is timed only while it computes an item."""
    now = [0.0]
    monkeypatch.setattr(shares.time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    timers = shares.Shares()
    inner = timers.timed(lambda: passes(2), "inner")
    timers.timed(lambda: (passes(1), inner(), passes(3)), "outer")()
    assert timers.seconds == {"outer": 4.0, "inner": 2.0}

    def items():
        for seconds in (5, 6):
            passes(seconds)
            yield seconds

    for _ in timers.timed(items, "items")():
        passes(100)
    assert timers.seconds["items"] == 11.0


def test_claims_are_about_rows_that_are_measured():
    keys = [row.key for row in throughput.rows()]
    assert len(set(keys)) == len(keys)
    assert {name for claim in claims() for name in (claim.over, claim.under) if name} <= set(keys)


def test_calls_take_turns_and_every_row_gets_its_number(monkeypatch):
    order = []

    class Here:
        def __init__(self, cores):
            self.cores = cores

        def __call__(self, function, **arguments):
            order.append((function, self.cores, arguments["repeat"]))
            return {"value": 1.0}

        def close(self):
            order.append("closed")

    monkeypatch.setattr(throughput, "Pinned", Here)
    rows = [throughput.Row("s/a", "", "ours.a", 1.0), throughput.Row("s/b", "", "peers.b", 1.0, times=2)]
    rows += [throughput.Row("s/c", "", "ours.c", 1.0, times=0)]
    calls_by_row = throughput.measured(rows, repeats=2)
    a, b, c = (("ours.a", 1), ("peers.b", 1), ("ours.c", 1))
    assert order[:4] == [(*a, 0), (*b, 0), (*b, 1), (*c, 0)]
    assert order[4:] == [(*a, 1), (*b, 2), (*b, 3), "closed", "closed"]
    assert {key: len(calls) for key, calls in calls_by_row.items()} == {"s/a@1": 2, "s/b@1": 4, "s/c@1": 1}


def test_a_missing_peer_is_one_sentence_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(throughput, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--only", "training/sb3"])
    with pytest.raises(SystemExit) as ending:
        throughput.main()
    assert ending.value.code == 2 and "pip install -e '.[benchmark]'" in capsys.readouterr().err


def test_the_three_files_are_written_from_figures(tmp_path):
    rows = throughput.rows()
    figures = {"value": 3.0, "steps": 4.0, "shares": {"simulator": 0.25, "rest": 0.75}}
    text = report_text(rows, {row.key: [figures, figures] for row in rows}, 2, 0.0, tmp_path)
    assert (tmp_path / "throughput.md").read_text() == text
    assert "| REINFORCE ÷ stable-baselines3's default, one core | 1.00 | [1.00, 1.00] | ≥ 35 | no |" in text
    assert text.count("`--only training/sb3-default`") == 1
    assert (tmp_path / "throughput.png").stat().st_size > 10_000 and (tmp_path / "throughput.json").is_file()
