"""Rows from token sequences: masks, log-probabilities, rewards and errors."""

import time
from dataclasses import fields

import pytest
import torch

from data_modules.text.rows import EXPERT, LEARNER, Segment, as_batch, as_rows
from lightning_nlf.batch import stack_rows
from lightning_nlf.maths.steps import with_final_obs

inf = float("inf")


def test_a_prompt_and_its_reply():
    """Prompts 5 6 and 7, replies 8 9 1 and 2 1.

    tokens   5 6 8 9 1   7 2 1
    obs      5 6 8 9     7 2 0 0
    actions  6 8 9 1     2 1 0 0
    valid    . x x x     x x . .
    """
    replies = [Segment([8, 9, 1], LEARNER, [-1.0, -2.0, -3.0], 0.5), Segment([2, 1], LEARNER, [-4.0, -5.0], 2.0)]
    batch = as_batch([[Segment([5, 6]), replies[0]], [Segment([7]), replies[1]]])
    assert batch.obs.tolist() == [[5, 6, 8, 9], [7, 2, 0, 0]]
    assert batch.actions.tolist() == [[6, 8, 9, 1], [2, 1, 0, 0]]
    assert batch.valid.int().tolist() == [[0, 1, 1, 1], [1, 1, 0, 0]]
    assert torch.equal(batch.mask, batch.valid) and not batch.expert_mask.any()
    assert batch.log_probs.tolist() == [[0, -1, -2, -3], [-4, -5, 0, 0]]
    assert batch.rewards.tolist() == [[0, 0, 0, 0.5], [0, 2, 0, 0]]
    assert batch.final_obs.tolist() == [1, 1] and batch.terminated.tolist() == [True, True]


def test_what_nobody_gave_is_not_there():
    batch = as_rows([[5]], [[1]])
    assert batch.log_probs is None and batch.rewards is None


def test_a_demonstration_is_imitated_and_not_learned_from_otherwise():
    batch = as_rows([[5, 6], [7]], [[8, 1], [2, 1]], EXPERT)
    assert not batch.mask.any() and torch.equal(batch.expert_mask, batch.valid)
    assert torch.equal(batch.expert_actions, batch.actions) and batch.valid.sum() == 4


def test_a_dialogue_that_the_expert_takes_over():
    """Prompt 5; the learner says 6 1, reads 7 8, says 9 2, and the expert continues with 3 1. Then 4 is read.

    actions  6 1 7 8 9 2 3 1
    valid    x x . . x x x x
    mask     x x . . x x . .      tokens that are read at the end lead to no action
    """
    dialogue = [
        Segment([5]),
        Segment([6, 1], LEARNER, [-1.0, -2.0], 0.25),
        Segment([7, 8]),
        Segment([9, 2], LEARNER, [-3.0, -4.0]),
        Segment([3, 1], EXPERT, reward=1.0),
        Segment([4]),
    ]
    short = [Segment([5, 5]), Segment([1], LEARNER, [-6.0], 0.0)]
    batch = as_batch([dialogue, short])
    assert batch.obs.tolist() == [[5, 6, 1, 7, 8, 9, 2, 3], [5, 5, 0, 0, 0, 0, 0, 0]]
    assert batch.actions[0].tolist() == [6, 1, 7, 8, 9, 2, 3, 1]
    assert batch.valid[0].int().tolist() == [1, 1, 0, 0, 1, 1, 1, 1]
    assert batch.mask[0].int().tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    assert batch.expert_mask[0].int().tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert batch.log_probs[0].tolist() == [-1, -2, 0, 0, -3, -4, inf, inf]
    assert batch.rewards[0].tolist() == [0, 0.25, 0, 0, 0, 0, 0, 1]
    assert batch.final_obs.tolist() == [1, 1] and batch.terminated.tolist() == [True, True]


def test_a_row_does_not_depend_on_its_neighbours():
    rows = [
        [Segment([5, 6, 7, 7, 7]), Segment([8, 1], EXPERT, [-1.0, -1.0], 3.0)],
        [Segment([5]), Segment([1], LEARNER, [-2.0], 1.0), Segment([2, 2, 2])],
        [Segment([5]), Segment([], LEARNER), Segment([4, 4]), Segment([9] * 5, LEARNER, [-0.5] * 5)],
    ]
    together = as_batch(rows)
    alone = stack_rows([as_batch([row]) if row is not rows[2] else as_batch([row, rows[0]])[:1] for row in rows])
    for field in fields(together):
        value = getattr(together, field.name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(alone, field.name)), field.name


def test_the_row_goes_on_where_its_last_reply_ended():
    """After the last action its token follows: a value or reward model reads it there."""
    batch = as_batch(
        [[Segment([5]), Segment([6, 1], LEARNER), Segment([7])], [Segment([5, 5, 5]), Segment([1], LEARNER)]]
    )
    obs, where = with_final_obs(batch)
    assert obs[where].tolist() == [1, 1] and obs[0].tolist() == [5, 6, 1, 0]


@pytest.mark.parametrize(
    ("dialogues", "message"),
    [
        ([], "at least one dialogue"),
        ([[Segment([5]), Segment([1], LEARNER)], [Segment([]), Segment([1], LEARNER)]], "dialogue 1 does not begin"),
        ([[Segment([5, 6])]], "dialogue 0 has no reply"),
        ([[Segment([5]), Segment([], EXPERT)], [Segment([5]), Segment([1], EXPERT)]], "dialogue 0 has no reply"),
        ([[Segment([5]), Segment([1, 2], LEARNER, [-1.0])]], "log_probs: got 1 for a reply of 2 tokens"),
        ([[Segment([5]), Segment([1], LEARNER, [-1.0]), Segment([1], LEARNER)]], "some of the learner's replies"),
        ([[Segment([5]), Segment([1], LEARNER), Segment([6], reward=1.0)]], "a segment without a decision"),
        ([[Segment([5]), Segment([1], LEARNER), Segment([], LEARNER, reward=1.0)]], "a segment without a decision"),
    ],
)
def test_what_makes_no_row_is_refused(dialogues, message):
    with pytest.raises(ValueError, match=message):
        as_batch(dialogues)


def test_as_many_replies_as_prompts():
    with pytest.raises(ValueError):
        as_rows([[5], [6]], [[1]])


def test_a_large_collection_is_fast():
    """512 rows of 100 tokens in a few ms: a loop over the 51,200 tokens would take ten times as long."""
    dialogues = [[Segment([3] * 40), Segment([4] * 60, LEARNER, [-1.0] * 60, 1.0)]] * 512
    seconds = []
    for _ in range(5):
        start = time.process_time()
        as_batch(dialogues)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.02
