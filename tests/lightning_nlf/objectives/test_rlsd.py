"""RLSD: the reward sets the sign of an advantage, the teacher its size."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.maths.schedules import Linear
from lightning_nlf.objectives import ReinforcePolicy, RLSDPolicy
from lightning_nlf.objectives.rlsd import evidence_advantages

GROUPS, LENGTHS = [0, 0, 0, 1, 1, 1], [2, 4, 3, 1, 2, 5]


@pytest.fixture
def batch(text):
    return text.rounds_of(GROUPS, LENGTHS, [0] * 6, [1.0, 0.2, 0.4, 0.9, 0.5, 0.0], [1, 1, 0, 0, 1, 1])


def knobs_of(**knobs):
    return {"normalize_advantages": False, "baseline": "group_mean"} | knobs


def build(text, **knobs):
    return RLSDPolicy(policy=text.gru_policy(), **knobs_of(**knobs))


def as_acted(module, batch):
    """With the log-probabilities of the policy itself."""
    return replace(batch, log_probs=module.evaluate(batch).log_probs.detach())


def logs(*values):
    return torch.tensor([values]).log()


def test_advantages_by_hand():
    """P_T/P_S = 2, 1.1, .5, 2, 1.1, .5; A = 3 three times, then −3; ε=.2.

    A > 0: w = 2, 1.1, .5 → 1.2, 1.1, .8. A < 0: ½, 1/1.1, 2 → .8, .9090909, 1.2. λ=½: halfway from 1.
    """
    mask = torch.ones(1, 6, dtype=torch.bool)
    advantages = torch.tensor([[3.0, 3, 3, -3, -3, -3]])
    teacher, policy = logs(0.4, 0.22, 0.1, 0.4, 0.22, 0.1), logs(0.2, 0.2, 0.2, 0.2, 0.2, 0.2)
    spread = evidence_advantages(advantages, teacher, policy, mask, 0.2, 1.0)
    assert spread[0].tolist() == pytest.approx([3.6, 3.3, 2.4, -2.4, -3 / 1.1, -3.6], abs=1e-5)
    half = evidence_advantages(advantages, teacher, policy, mask, 0.2, 0.5)
    assert half[0].tolist() == pytest.approx([3.3, 3.15, 2.7, -2.7, -1.5 - 1.5 / 1.1, -3.3], abs=1e-5)


def test_outside_of_the_mask_nothing_changes():
    spread = evidence_advantages(
        torch.tensor([[2.0, 2.0]]),
        torch.tensor([[0.0, math.inf]]),
        logs(0.5, 0.5),
        torch.tensor([[False, False]]),
        0.2,
        1,
    )
    assert spread.tolist() == [[2, 2]]


def test_no_advantage_changes_its_sign(text, batch):
    module = text.moved(build(text, evidence_clip=0.99))
    plain = ReinforcePolicy(policy=text.gru_policy(), **knobs_of()).prepare(batch).advantages
    spread = module.prepare(batch).advantages
    assert torch.equal(spread.sign(), plain.sign()) and not torch.allclose(spread, plain)
    assert (spread[batch.mask].abs() <= 1.99 * plain[batch.mask].abs() + 1e-6).all()


@pytest.mark.parametrize(("earned", "expected"), [(1.0, 1.1), (-1.0, -1 / 1.1)])
def test_through_the_module_by_hand(text, earned, expected):
    """The reply, token 1, has .2 after the prompt and .22 after the feedback: A = 1 becomes 1.1, A = −1 −1/1.1."""
    policy = text.lookup_policy([(0.7, 0.2, 0.1), (0.2, 0.2, 0.6), (0.5, 0.22, 0.28)])
    valid = torch.ones(1, 1, dtype=torch.bool)
    prompt, theirs = torch.tensor([[0]]), torch.tensor([[2]])
    action, rewards = torch.ones_like(prompt), torch.tensor([[earned]])
    view = Batch(theirs, action, valid, ~valid)
    rows = Batch(prompt, action, valid, valid, log_probs=logs(0.2), rewards=rewards, view=view)
    module = RLSDPolicy(policy=policy, normalize_advantages=False)
    assert float(module.prepare(rows).advantages) == pytest.approx(expected, abs=1e-5)


def test_rows_without_a_teacher_are_those_of_the_policy_gradient(text, batch):
    spread = build(text).prepare(batch).advantages
    plain = ReinforcePolicy(policy=text.gru_policy(), **knobs_of()).prepare(batch).advantages
    assert torch.equal(spread[[2, 3]], plain[[2, 3]]) and not torch.allclose(spread[[0, 1]], plain[[0, 1]])


def test_feedback_that_says_nothing_is_the_policy_gradient(text, batch):
    module = build(text)
    rows = as_acted(module, replace(batch, view=Batch(batch.obs, batch.actions, batch.valid, batch.mask)))
    plain = ReinforcePolicy(policy=text.gru_policy(), **knobs_of()).prepare(rows).advantages
    torch.testing.assert_close(module.prepare(rows).advantages, plain)


def test_the_teacher_is_asked_once(text, batch):
    """By default the teacher is the policy itself, without another network; the loss is plain policy gradient."""
    module = text.moved(build(text))
    assert module.teacher is module.policy
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    expected = -(now.log_probs * prepared.advantages)[batch.mask].mean()
    terms = module.losses(replace(prepared, view=None), now)
    assert set(terms) == {"policy"}
    torch.testing.assert_close(terms["policy"], expected)


def test_a_schedule_of_the_weight(text, batch):
    """17 tokens per collection, from 1 to 0 over 34: ½, then 0."""
    module = build(text, evidence_weight=Linear(1.0, 0.0, 34))
    half, second = module.prepare(batch).advantages, module.prepare(batch).advantages
    torch.testing.assert_close(half, build(text, evidence_weight=0.5).prepare(batch).advantages)
    plain = ReinforcePolicy(policy=text.gru_policy(), **knobs_of()).prepare(batch).advantages
    assert torch.equal(second, plain)


@pytest.mark.parametrize("knob", [{"evidence_clip": 0.1}, {"evidence_weight": 0.5}, {"teacher_rate": 0.0}])
def test_every_knob_changes_the_loss(text, batch, knob):
    """The behaviour is the moved policy itself, otherwise all ratios are clipped."""
    usual, changed = (
        float(text.loss(module, as_acted(module, batch)).detach())
        for module in (text.moved(build(text, **knobs)) for knobs in ({}, knob))
    )
    assert usual != pytest.approx(changed, rel=1e-5)


def test_padding_and_micro_batches_change_nothing(text, batch):
    module = text.moved(build(text))
    prepared = module.prepare(batch)
    whole = text.gradient_of(module, text.micro_batches(prepared, [list(range(6))]))
    parts = text.micro_batches(prepared, [[0, 1, 2], [3, 4, 5]])
    torch.testing.assert_close(text.gradient_of(module, parts), whole)
    torch.testing.assert_close(text.loss(module, text.padded(batch)), text.loss(module, batch))


def test_what_is_wrong_is_named(text, batch):
    for name, value in {"evidence_clip": 1.0, "evidence_weight": 1.5}.items():
        with pytest.raises(ValueError, match=name):
            build(text, **{name: value})
    with pytest.raises(ValueError, match="log_probs"):
        build(text).prepare(replace(batch, log_probs=None))
