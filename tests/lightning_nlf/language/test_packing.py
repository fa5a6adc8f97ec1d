"""Shared prefixes are computed once, and tokens that nothing depends on are not computed."""

import torch

from lightning_nlf.language.packing import pack


def everywhere(ids):
    return torch.ones(ids.shape, dtype=torch.bool)


def tokens_of(ids, where=None, **how):
    return len(pack(ids, everywhere(ids) if where is None else where, **how).ids)


def test_padding_is_left_out():
    """Rows with 3 and 1 requested tokens, and one row without any."""
    where = torch.zeros(3, 4, dtype=torch.bool)
    where[0, 2] = where[1, 0] = True
    assert pack(torch.arange(12).view(3, 4), where).ids.tolist() == [0, 1, 2, 4]


def test_two_prompts_with_three_replies_each():
    """Two stems of 4 tokens and six leaves of 2: 20 tokens instead of 36."""
    prompts = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]]).repeat_interleave(3, 0)
    replies = torch.tensor([[6, 6], [7, 6], [8, 6]]).repeat(2, 1)
    shuffled = torch.cat([prompts, replies], 1)[torch.tensor([5, 0, 3, 1, 4, 2])]
    assert tokens_of(shuffled) == 2 * 4 + 6 * 2
    assert tokens_of(shuffled, share=False) == 36


def test_the_best_cut_is_found():
    """abcdx, abcdy, abz, abw: one stem ab leaves 2 + 3 + 3 + 1 + 1 = 10 tokens; abcd and ab 4 + 1 + 1 + 2 + 1 + 1.

    Both are 10. With four more common tokens after the d, one stem leaves 8 more and two stems leave 4 more: 14.
    """
    long, short = [1, 2, 3, 4, 9, 9, 9, 9], [1, 2]
    rows = torch.tensor([[*long, 5], [*long, 6], [*short, 7, *[0] * 6], [*short, 8, *[0] * 6]])
    where = everywhere(rows)
    where[2:, 3:] = False
    assert tokens_of(rows, where) == 14


def test_little_in_common_is_not_worth_a_second_attention():
    rows = torch.arange(40).view(2, 20)
    rows[:, 0] = 0
    assert pack(rows, everywhere(rows)).leaves is None


def test_equal_rows_are_computed_once():
    rows = torch.arange(6).repeat(4, 1)
    packed = pack(rows, everywhere(rows))
    assert packed.ids.tolist() == list(range(6)) and packed.leaves is None
    assert packed.outputs.tolist() == list(range(6)) * 4


def test_each_wanted_token_is_the_one_asked_for():
    torch.manual_seed(0)
    for _ in range(30):
        ids = torch.randint(2, (8, 12)).cumsum(1)  # many rows share a prefix
        where = torch.rand(8, 12) < 0.3
        where[0, 0] = True
        packed = pack(ids, where)
        assert torch.equal(packed.ids[packed.outputs], ids[where])
        assert torch.equal(packed.positions[packed.outputs], where.nonzero()[:, 1])
