"""RLTF-SD: the first-turn baseline, the floor, and the plain policy gradient if there are no revisions.

By default: two groups of two attempts and two revisions each.
"""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.maths.means import masked_mean
from lightning_nlf.objectives import FirstTurnPolicy, ReinforcePolicy
from lightning_nlf.objectives.first_turn import first_turn_advantages, first_turn_loss

GROUPS, REVISIONS, LENGTHS = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1], [2, 4, 3, 1, 2, 5, 3, 4]


@pytest.fixture
def batch(text):
    earned = [0.0, 1.0, 1.0, 0.2, 0.3, 0.1, 0.9, 0.0]
    return text.rounds_of(GROUPS, LENGTHS, REVISIONS, earned, has_feedback=[1] * 8)


def build(text, **knobs):
    knobs = {"normalize_advantages": False} | knobs
    return FirstTurnPolicy(policy=text.gru_policy(), **knobs)


def row(*values):
    return torch.tensor([values], dtype=torch.float)


def test_loss_by_hand():
    """A=2: log π = −1, −6, −4.5, floor −5: −2·(−1), 0, −2·(−4.5), with mean 11/3; the fourth token is padding."""
    mask = torch.tensor([[True, True, True, False]])
    log_probs, advantages = row(-1, -6, -4.5, math.nan), torch.tensor([2.0])
    for floor, values in ((-5.0, [2, 0, 9]), (-7.0, [2, 12, 9])):
        loss = first_turn_loss(log_probs, advantages, floor)
        assert loss.shape == (1, 4) and loss[0, :3].tolist() == values
        assert float(masked_mean(loss, mask)) == pytest.approx(sum(values) / 3)


def test_advantages_are_of_rows():
    with pytest.raises(ValueError, match=r"advantages \(1, 1\)"):
        first_turn_loss(row(-1, -2), row(2), -5.0)


def test_a_token_below_the_floor_has_no_gradient():
    log_probs = row(-1, -6, -5).requires_grad_()
    first_turn_loss(log_probs, torch.tensor([3.0]), -5.0).mean().backward()
    assert log_probs.grad.tolist() == [[pytest.approx(-1), 0, pytest.approx(-1)]]


def test_the_baseline_is_of_the_attempts(batch):
    """Attempts have returns 0, 1 and .3, .1: baselines .5 and .2. Revisions 1, .2, .9, 0 → .5, −.3, .7, −.2."""
    advantages = first_turn_advantages(batch.rewards.sum(1), batch)
    assert advantages[[2, 3, 6, 7]].tolist() == pytest.approx([0.5, -0.3, 0.7, -0.2])


def test_the_loss_of_the_module_by_hand(text, batch):
    """Weight .1, mean over the 3 + 1 + 3 + 4 tokens of the revisions; the policy is near uniform over 11 tokens."""
    module = build(text)
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    log_probs = now.log_probs.detach()
    advantages = {2: 0.5, 3: -0.3, 6: 0.7, 7: -0.2}
    summed = sum(a * log_probs[r][batch.valid[r]].sum() for r, a in advantages.items())
    terms = module.losses(prepared, now)
    assert set(terms) == {"policy", "self_distillation"}
    torch.testing.assert_close(terms["self_distillation"], -0.1 * summed / 11)
    assert float(module.figures(prepared, now)["below_floor"]) == 0


def test_the_policy_term_is_that_of_the_attempts(text, batch):
    """The same as without revisions, which do not change baseline, mean or whitening of the attempts."""
    alone = batch[~batch.extra["revision"]]
    for knobs in ({"baseline": "group_mean"}, {"normalize_advantages": True}, {"baseline": "batch_mean"}):
        plain = ReinforcePolicy(policy=text.gru_policy(), **({"normalize_advantages": False} | knobs))
        torch.testing.assert_close(
            text.terms(build(text, **knobs), batch)["policy"], text.terms(plain, alone)["policy"]
        )


def test_revisions_that_gain_nothing_teach_nothing(text):
    batch = text.rounds_of(GROUPS, LENGTHS, REVISIONS, [0.0, 1.0, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3], has_feedback=[1] * 8)
    module = build(text)
    text.terms(module, batch)["self_distillation"].backward()
    assert not any(p.grad.any() for p in module.parameters())


def test_revisions_that_are_all_right_still_teach(text):
    """With the mean of the revisions as the baseline there would be no gradient."""
    batch = text.rounds_of(GROUPS, LENGTHS, REVISIONS, [0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0], has_feedback=[1] * 8)
    module = build(text)
    text.terms(module, batch)["self_distillation"].backward()
    assert any(p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(("earned", "sign"), [(1.0, 1), (0.0, -1)])
def test_what_gained_gets_likelier(text, earned, sign):
    batch = text.rounds_of([0, 0], [3, 3], [0, 1], [0.5, earned], has_feedback=[1, 1])
    module = build(text, distillation_weight=1.0)
    before = module.evaluate(batch).log_probs.detach()[1].sum()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    text.terms(module, batch)["self_distillation"].backward()
    optimizer.step()
    assert sign * (module.evaluate(batch).log_probs.detach()[1].sum() - before) > 0


@pytest.mark.parametrize("knob", [{"distillation_weight": 0.2}, {"floor": -2.4}])
def test_every_knob_changes_the_loss(text, batch, knob):
    """The log-probabilities of tokens are near −ln 11 = −2.398."""
    usual, changed = (float(text.loss(build(text, **knobs), batch).detach()) for knobs in ({}, knob))
    assert usual != pytest.approx(changed, abs=1e-5)


def test_below_the_floor_is_noted(text, batch):
    module = build(text, floor=0.0)
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    assert not module.losses(prepared, now)["self_distillation"]
    assert float(module.figures(prepared, now)["below_floor"]) == 1


def test_padding_and_micro_batches_change_nothing(text, batch):
    module = build(text)
    prepared = module.prepare(batch)
    whole = text.gradient_of(module, text.micro_batches(prepared, [list(range(8))]))
    parts = text.micro_batches(prepared, [[0, 1, 2, 3], [4, 5, 6, 7]])
    torch.testing.assert_close(text.gradient_of(module, parts), whole)
    apart = text.micro_batches(prepared, [[0, 1, 4, 5], [2, 3, 6, 7]])  # one part has no revisions
    torch.testing.assert_close(text.gradient_of(module, apart), whole)
    torch.testing.assert_close(text.loss(module, text.padded(batch)), text.loss(module, batch))


def test_a_collection_without_revisions_is_a_policy_gradient(text, batch):
    module = build(text)
    terms = text.terms(module, replace(batch, extra={"revision": torch.zeros(8, dtype=torch.bool)}))
    assert not terms["self_distillation"] and terms["policy"]


def test_what_is_missing_is_named(text, batch):
    with pytest.raises(ValueError, match="marks the rows that are revisions"):
        build(text).prepare(replace(batch, extra={}))
    with pytest.raises(ValueError, match="no rewards"):
        build(text).prepare(replace(batch, rewards=None))
