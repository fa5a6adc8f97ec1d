"""Critique-GRPO: one baseline and one mean for attempts and revisions, and the shaped loss of revisions."""

from dataclasses import replace

import pytest
import torch

from lightning_nlf.objectives import CritiqueGRPOPolicy, ReinforcePolicy
from lightning_nlf.objectives.critique_grpo import shared_advantages

GROUPS, REVISIONS, LENGTHS = [0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 1], [2, 4, 3, 1, 2, 5]
ADVANTAGES = [-0.4, -0.1, 0.5, 0.4, -0.2, -0.2]


@pytest.fixture
def batch(text):
    return text.rounds_of(GROUPS, LENGTHS, REVISIONS, [0.1, 0.4, 1.0, 0.9, 0.3, 0.3], [1] * 6)


def build(text, **knobs):
    return CritiqueGRPOPolicy(policy=text.gru_policy(), **knobs)


def test_one_baseline_by_hand(batch):
    """The group means of .1, .4, 1 and .9, .3, .3 are both .5."""
    assert shared_advantages(batch.rewards.sum(1), batch).tolist() == pytest.approx(ADVANTAGES)


def test_the_loss_by_hand(text, batch):
    """−(Σ of A log π over 9 tokens of attempts + Σ of A π/(π + .1) over 8 tokens of revisions) / 17."""
    module = text.moved(build(text))
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    log_probs = now.log_probs.detach()
    advantages = torch.tensor(ADVANTAGES)[:, None]
    attempts = (advantages * log_probs)[batch.mask].sum()
    pi = log_probs.exp()
    revisions = (advantages * pi / (pi + 0.1))[batch.valid & ~batch.mask].sum()
    terms = module.losses(prepared, now)
    torch.testing.assert_close(terms["policy"], -attempts / 17)
    torch.testing.assert_close(terms["injected"], -revisions / 17)


def test_whose_words_the_revisions_are_does_not_matter(text, batch):
    """The reviser's log-probabilities have no effect."""
    module = text.moved(build(text))
    changed = torch.where(batch.mask, batch.log_probs, -7.0)
    torch.testing.assert_close(text.loss(module, replace(batch, log_probs=changed)), text.loss(module, batch))


def test_without_revisions_it_is_the_group_mean(text, batch):
    alone = batch[~batch.extra["revision"]]
    plain = ReinforcePolicy(policy=text.gru_policy(), baseline="group_mean", gamma=1.0, normalize_advantages=False)
    terms = text.terms(build(text), alone)
    assert not terms["injected"]
    torch.testing.assert_close(terms["policy"], text.terms(plain, alone)["policy"])


def test_a_group_that_all_earned_the_same_teaches_nothing(text):
    batch = text.rounds_of(GROUPS, LENGTHS, REVISIONS, [0.7] * 3 + [0.1] * 3, [1] * 6)
    module = build(text)
    text.loss(module, batch).backward()
    assert not any(p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(
    "knob", [{"shape": 0.5}, {"injected_weight": 0.5}, {"clip": 0.2}, {"normalize_advantages": True}]
)
def test_every_knob_changes_the_loss(text, batch, knob):
    usual, changed = (float(text.loss(text.moved(build(text, **knobs)), batch).detach()) for knobs in ({}, knob))
    assert usual != pytest.approx(changed, abs=1e-4)


def test_padding_and_micro_batches_change_nothing(text, batch):
    module = text.moved(build(text))
    prepared = module.prepare(batch)
    whole = text.gradient_of(module, text.micro_batches(prepared, [list(range(6))]))
    for parts in ([[0, 1, 2], [3, 4, 5]], [[0, 1, 3, 4], [2, 5]]):  # also splits revisions from attempts
        torch.testing.assert_close(text.gradient_of(module, text.micro_batches(prepared, parts)), whole)
    torch.testing.assert_close(text.loss(module, text.padded(batch)), text.loss(module, batch))


def test_what_is_wrong_is_named(text, batch):
    for knob, value in {"baseline": "group_mean", "advantage_scale": "group_std"}.items():
        with pytest.raises(ValueError, match=knob):
            build(text, **{knob: value})
    with pytest.raises(ValueError, match="no rewards"):
        build(text).prepare(replace(batch, rewards=None))
    with pytest.raises(ValueError, match="marks the rows that are revisions"):
        build(text).prepare(replace(batch, extra={}))
    with pytest.raises(ValueError, match="neither attempts nor revisions"):
        build(text).prepare(replace(batch, extra={"revision": torch.zeros(6, dtype=torch.bool)}))
