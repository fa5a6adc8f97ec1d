"""Filtered imitation: an expert's row is imitated only if it is better than the learner's own rows."""

from dataclasses import replace

import pytest
import torch

from lightning_nlf.objectives import FilteredJointPolicy, JointPolicy
from lightning_nlf.objectives.filtered_imitation import better_than_learner


def test_better_than_the_mean_of_the_learners_own():
    """Group 0: the learner's 1 and 2 have mean 1.5, so 1.6 is better, 1.5 and 1.4 are not; 9 has no learner's row."""
    score = torch.tensor([1.0, 2, 1.6, 1.5, 1.4, 9])
    learner_rows = torch.tensor([1, 1, 0, 0, 0, 0]).bool()
    selected = better_than_learner(score, torch.tensor([0, 0, 0, 0, 0, 1]), learner_rows)
    assert selected.tolist() == [False, True, True, False, False, True]


def test_equals_are_not_better():
    """The mean of three float values .1 must be exactly .1."""
    score = torch.full((4,), 0.1)
    learner_rows = torch.tensor([True, True, True, False])
    assert not better_than_learner(score, torch.zeros(4), learner_rows).any()


@pytest.fixture
def batch(text):
    """Two groups: two rows of the learner, one that an expert continues from its second token, one expert row."""
    rows = text.replies_to([0, 0, 0, 0, 1, 1, 1], [3, 3, 3, 3, 2, 2, 2])
    last = rows.mask & ~torch.cat([rows.mask[:, 1:], torch.zeros_like(rows.mask[:, :1])], 1)
    first = rows.mask & (rows.mask.cumsum(1) == 1)
    expert = rows.mask.clone()
    expert[[0, 1, 4, 5]] = False
    expert[2] &= ~first[2]
    pay = torch.tensor([0.0, 1, 0.4, 0.6, 1, 1, 0.9])
    return replace(
        rows, mask=rows.mask & ~expert, expert_mask=expert, expert_actions=rows.actions, rewards=last * pay[:, None]
    )


def filtered(text, kind=FilteredJointPolicy):
    return kind(policy=text.gru_policy(), divergence="nll", gamma=1.0)


def test_rows_that_are_not_better_are_not_imitated(text, batch):
    """The learner's rows have mean .5, then 1: of .4, .6 and .9 only .6 is kept. Nothing else changes."""
    module = filtered(text)
    prepared = module.prepare(batch)
    assert prepared.expert_mask.any(1).nonzero()[:, 0].tolist() == [3]
    assert torch.equal(prepared.expert_mask[3], batch.expert_mask[3])
    plain = filtered(text, JointPolicy).prepare(batch)
    assert torch.equal(prepared.advantages, plain.advantages) and torch.equal(prepared.mask, plain.mask)
    assert torch.stack(module._unlogged["kept"]).tolist() == pytest.approx([1 / 3])


def test_a_score_goes_before_the_rewards(text, batch):
    scored = replace(batch, score=torch.tensor([0.0, 0, 1, 0, 0, 0, 1]))
    selected = filtered(text).prepare(scored).expert_mask.any(1)
    assert selected.nonzero()[:, 0].tolist() == [2, 6]


def test_labels_of_the_learners_own_rows_and_of_nobodys_stay(text, batch):
    """The second row of the first group has labels; the last row has only labels and is alone in its group."""
    labels = batch.expert_mask.clone()
    labels[0] = batch.mask[0]
    alone = torch.ones(7, 1, dtype=torch.bool)
    alone[6] = False
    batch = replace(
        batch, expert_mask=labels, valid=batch.valid & alone, group=torch.tensor([0, 0, 0, 0, 1, 1, 2]),
    )  # fmt: skip
    assert filtered(text).prepare(batch).expert_mask.any(1).nonzero()[:, 0].tolist() == [0, 3, 6]


def test_what_cannot_be_compared_is_refused(text, batch):
    with pytest.raises(ValueError, match="group"):
        filtered(text).prepare(replace(batch, group=None))
