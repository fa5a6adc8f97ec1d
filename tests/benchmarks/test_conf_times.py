"""How long a yaml takes: where a fit stops, and how its time is extended to the whole run."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import conf_times
from benchmarks.conf_headers import headers
from benchmarks.conf_times import IterationClock, is_alone, table, whole_minutes

ROW = {"iterations": 50, "of": 200, "seconds": 30.0, "start_seconds": 6.0, "ended": False}


def test_a_fit_that_was_stopped_is_extended_and_one_that_ended_is_not():
    assert whole_minutes(ROW) == pytest.approx((6 + 30 * 4) / 60)
    assert whole_minutes(ROW | {"ended": True}) == pytest.approx(36 / 60)


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """A clock that starts at 5 seconds; `at(seconds, …)` ends an iteration then."""
    trainer = SimpleNamespace(current_epoch=1, max_epochs=4, should_stop=False)
    clock = IterationClock(str(tmp_path / "clock.json"), seconds=10)

    def at(now, **state):
        monkeypatch.setattr(conf_times.time, "process_time", lambda: now)
        vars(trainer).update(state)
        clock.on_train_epoch_end(trainer, None)
        return json.loads((tmp_path / "clock.json").read_text()), trainer.should_stop

    monkeypatch.setattr(conf_times.time, "process_time", lambda: 5.0)
    clock.on_train_start(trainer, None)
    return at


def test_a_fit_stops_at_the_first_iteration_past_its_time(clock):
    row, stops = clock(14.0)
    assert row == {"iterations": 2, "of": 4, "seconds": 9.0, "start_seconds": 5.0, "ended": False} and not stops
    row, stops = clock(15.0, current_epoch=2)
    assert row["iterations"] == 3 and not row["ended"] and stops


@pytest.mark.parametrize("state", [{"current_epoch": 3}, {"should_stop": True}])
def test_a_fit_that_ends_by_itself_has_ended(clock, state):
    assert clock(6.0, **state)[0]["ended"]


def test_what_needs_people_a_judge_or_a_model_of_yours_is_left_out():
    alone = {header.name for header in headers() if is_alone(header)}
    assert {"injection", "reviews/dpo", "answers/ask"} <= alone
    assert not alone & {"chat/sft", "answers/round", "reviews/rlaif_direct", "providers/rule"}


def test_the_table_says_how_much_was_measured():
    lines = table({"b": {"minutes": 2.25, **ROW}, "a": {"minutes": 0.5, "ended": True}}).splitlines()[2:]
    assert lines == ["| a | 0.5 |  |", "| b | 2.2 | 50 of at most 200 |"]
