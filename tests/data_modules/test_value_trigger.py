"""Take-over by value: the lowest values of the last wave, whatever their scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_modules.value_trigger import ValueTriggered
from lightning_nlf.maths.schedules import Linear


def plan(takeover: ValueTriggered, episodes: int, horizon: int, experience: int = 0) -> torch.Tensor:
    return takeover.plan(episodes, horizon, 50.0, np.random.default_rng(0), experience)


def wave(takeover: ValueTriggered, values: torch.Tensor, experience: int = 0) -> torch.Tensor:
    """Plan a wave, and call the trigger step by step with values (steps, rows)."""
    assert not plan(takeover, values.shape[1], len(values), experience=experience).any()
    return torch.stack([takeover.calls(v) for v in values])


def test_the_lowest_values_call_the_expert():
    """Last wave: 1 … 10, whose lowest fifth ends at 2.8 (linear between 2 and 3); so 2 and 2.7 call, 2.9 does not."""
    takeover = ValueTriggered(0.2, 5)
    assert not wave(takeover, torch.arange(1.0, 11.0).view(5, 2)).any()
    assert wave(takeover, torch.tensor([[2.0, 2.7], [2.9, 9.0]])).tolist() == [[True, True], [False, False]]


def test_it_is_asked_for_a_share_of_the_decisions():
    """A fraction .1 of 2 · 10⁵ values; from 1,000 values the bound has standard error √.09/31.6 = .0095."""
    takeover = ValueTriggered(0.1)
    draws = torch.randn(2, 2_000, 100, generator=torch.Generator().manual_seed(0))
    wave(takeover, draws[0])
    assert wave(takeover, draws[1]).float().mean().item() == pytest.approx(0.1, abs=4 * 0.0095)


def test_values_may_be_negative_or_scaled():
    before, now = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(0))
    calls = []
    for scale, shift in [(1, 0), (8, 0), (0.5, -64)]:
        takeover = ValueTriggered(0.3)
        wave(takeover, scale * before + shift)
        calls.append(wave(takeover, scale * now + shift))
    assert calls[0].any() and torch.equal(calls[0], calls[1]) and torch.equal(calls[0], calls[2])


def test_a_scheduled_fraction_is_that_of_the_moment():
    values = torch.arange(100.0).view(10, 10)
    takeover = ValueTriggered(Linear(0.5, 0.0, 100))
    called = [int(wave(takeover, values, experience).sum()) for experience in (0, 0, 50, 100)]
    assert called == [0, 50, 25, 0]  # the first wave has nothing to compare with


def test_a_wave_without_a_question_changes_nothing():
    takeover = ValueTriggered(0.5)
    wave(takeover, torch.arange(10.0).view(5, 2))
    plan(takeover, 2, 5)
    plan(takeover, 2, 5)
    assert takeover.calls(torch.tensor([4.0, 5.0])).tolist() == [True, False]


def test_a_trigger_goes_on_from_its_state():
    generator = torch.Generator().manual_seed(0)
    before, now = torch.randn(700, 10, generator=generator), torch.randn(20, 10, generator=generator)
    takeover, resumed = ValueTriggered(0.3), ValueTriggered(0.3)
    wave(takeover, before)
    state = takeover.state_dict()
    assert 500 <= len(state["values"]) <= 1_000  # every seventh
    resumed.load_state_dict(state)
    expected = wave(takeover, now)
    assert expected.any() and torch.equal(wave(resumed, now), expected)


def test_it_asks_for_the_critics_values():
    assert ValueTriggered(length=7).asks == "values" and ValueTriggered(length=7).length == 7


@pytest.mark.parametrize("knobs, message", [({"fraction": 1.1}, "fraction: got 1.1"), ({"length": 0}, "length: got 0")])
def test_bad_knobs_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        ValueTriggered(**knobs)
