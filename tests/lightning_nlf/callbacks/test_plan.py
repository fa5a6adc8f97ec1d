"""How much a fit has to do, and how long it takes, by its first optimizer steps."""

from types import SimpleNamespace

import pytest

from lightning_nlf.callbacks import plan
from lightning_nlf.callbacks.plan import Plan


def lines(monkeypatch, seconds, steps, least=10.0, micro_batches=1, counters=None):
    """What is said after each batch of a fit whose optimizer steps take so many `seconds` each."""
    clock = [100.0]
    monkeypatch.setattr(plan.time, "perf_counter", lambda: clock[0])
    data = SimpleNamespace(counters=counters or {})
    trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=steps, current_epoch=0, datamodule=data)
    made, said = Plan("run", least), []
    for place in range(len(seconds) * micro_batches):
        made.batch_begins(trainer)
        clock[0] += seconds[place // micro_batches] / micro_batches
        trainer.global_step = (place + 1) // micro_batches
        said.append(made.line(trainer))
    return said


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_first_step_is_not_timed(monkeypatch, micro_batches):
    """97 steps of 2 s are left after the third of a hundred: 3 minutes and 14 seconds."""
    found = lines(monkeypatch, [50, 2, 2], 100, micro_batches=micro_batches, counters={"rows": 12, "tokens": 3400})
    assert found[:-1] == [None] * (len(found) - 1)
    assert found[-1] == "run: 12 rows and 3,400 tokens an epoch, 100 optimizer steps · about 0:03:14 left"


def test_a_fit_that_is_over_soon_or_has_no_end_says_nothing(monkeypatch):
    assert lines(monkeypatch, [1, 1, 1], 12) == [None] * 3
    assert lines(monkeypatch, [1, 1, 1], 13)[-1] == "run: 13 optimizer steps · about 0:00:10 left"
    assert lines(monkeypatch, [1, 1, 1], float("inf")) == lines(monkeypatch, [1, 1, 1], -1) == [None] * 3
