"""An expert's row is imitated only where it is better than what the learner says by itself."""

from dataclasses import replace

import pytest
import torch

from lightning_nlf.objectives import FilteredJointPolicy, JointPolicy
from lightning_nlf.objectives.filtered_imitation import better_than_own


def test_better_than_the_mean_of_the_learners_own():
    """Group 0: own 1 and 2, mean 1.5: 1.6 is better, 1.5 and 1.4 are not; 9 is in a group without the learner."""
    score = torch.tensor([1.0, 2, 1.6, 1.5, 1.4, 9])
    own = torch.tensor([1, 1, 0, 0, 0, 0]).bool()
    kept = better_than_own(score, torch.tensor([0, 0, 0, 0, 0, 1]), own)
    assert kept.tolist() == [False, True, True, False, False, True]


def test_equals_are_not_better():
    """.1 as a float, summed thrice and divided, is no other number."""
    score = torch.full((4,), 0.1)
    own = torch.tensor([True, True, True, False])
    assert not better_than_own(score, torch.zeros(4), own).any()


@pytest.fixture
def batch(text):
    """Two groups: two rows of the learner's, one that an expert goes on in from its second token, one all its own."""
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
    """The learner's own earn .5 in the mean, then 1: of .4, .6 and .9 only .6 stays. Nothing else changes."""
    module = filtered(text)
    prepared = module.prepare(batch)
    assert prepared.expert_mask.any(1).nonzero()[:, 0].tolist() == [3]
    assert torch.equal(prepared.expert_mask[3], batch.expert_mask[3])
    plain = filtered(text, JointPolicy).prepare(batch)
    assert torch.equal(prepared.advantages, plain.advantages) and torch.equal(prepared.mask, plain.mask)
    assert torch.stack(module._unlogged["kept"]).tolist() == pytest.approx([1 / 3])


def test_a_score_goes_before_the_rewards(text, batch):
    scored = replace(batch, score=torch.tensor([0.0, 0, 1, 0, 0, 0, 1]))
    kept = filtered(text).prepare(scored).expert_mask.any(1)
    assert kept.nonzero()[:, 0].tolist() == [2, 6]


def test_labels_of_the_learners_own_rows_and_of_nobodys_stay(text, batch):
    """The second row of the first group has labels; the last row is a label alone, in a group of its own."""
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
