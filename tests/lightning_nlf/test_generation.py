"""The token loop against the training forward, and turn by turn against the whole dialogue at once."""

import torch

from lightning_nlf import generation
from lightning_nlf.networks import GRUPolicy

STOP = 0


def policy(seed=0):
    torch.manual_seed(seed)
    network = GRUPolicy(vocabulary=6, width=16)
    with torch.no_grad():
        network.head.weight *= 8  # an untrained head is nearly uniform, and would hide a mix-up of rows
    return network


@torch.no_grad()
def test_stored_log_probs_are_those_of_the_training_forward_over_two_turns():
    network = policy()
    prompts, lengths = torch.tensor([[2, 3, 4], [5, 9 % 6, 0], [4, 4, 0]]), torch.tensor([3, 2, 1])
    first, first_log_probs, first_count, state = generation.reply(
        network, prompts, lengths, stop=(STOP,), max_new=4, resume=True
    )
    new = torch.stack([first[torch.arange(3), first_count - 1], torch.ones(3, dtype=torch.long)], 1)
    second, second_log_probs, second_count, _ = generation.reply(
        network, new, torch.tensor([2, 2, 2]), state, stop=(STOP,), max_new=4
    )
    for row in range(3):
        a, b = int(first_count[row]), int(second_count[row])
        said = torch.cat([prompts[row, : lengths[row]], first[row, :a], torch.tensor([1]), second[row, :b]])
        log_probs = network(said[None, :-1]).log_prob(said[None, 1:])[0]
        start = int(lengths[row]) - 1
        torch.testing.assert_close(log_probs[start : start + a], first_log_probs[row, :a])
        torch.testing.assert_close(log_probs[start + a + 1 :], second_log_probs[row, :b])


@torch.no_grad()
def test_a_reply_ends_with_its_first_stop_token_and_is_padded_behind():
    torch.manual_seed(1)
    tokens, log_probs, count, _ = generation.reply(
        policy(), torch.full((200, 1), 2), torch.ones(200, dtype=torch.long), stop=(STOP,), max_new=5
    )
    assert len(count.unique()) > 1  # rows of several lengths are there
    for row, length in zip(tokens.tolist(), count.tolist(), strict=True):
        assert STOP not in row[: length - 1] and (row[length - 1] == STOP or length == 5)
        assert set(row[length:]) <= {STOP}
    assert (log_probs[torch.arange(tokens.shape[1]) >= count[:, None]] == 0).all()


@torch.no_grad()
def test_greedy_takes_the_likeliest_token():
    network = policy()
    tokens, *_ = generation.reply(
        network, torch.tensor([[2]]), torch.tensor([1]), stop=(STOP,), max_new=1, deterministic=True
    )
    assert tokens[0, 0] == network(torch.tensor([[2]])).logits[0, 0].argmax()


@torch.no_grad()
def test_padding_of_a_prompt_is_never_read():
    network = policy()
    lengths = torch.tensor([2])
    short, padded = torch.tensor([[2, 3]]), torch.tensor([[2, 3, 5, 5]])
    for a, b in zip(*(network.read(ids, lengths) for ids in (short, padded)), strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_a_limit_cuts_a_reply_and_changes_nothing_before():
    """Rows of limit 0, 1, 2, 3, 4, 5, over and over: each is the beginning of the reply without a limit."""
    network, count = policy(), 120
    ids, lengths, seeds = torch.full((count, 1), 2), torch.ones(count, dtype=torch.long), torch.arange(count)
    limits = torch.arange(count) % 6
    whole, whole_log_probs, ends, _ = generation.reply(network, ids, lengths, stop=(STOP,), max_new=5, seeds=seeds)
    tokens, log_probs, cut, _ = generation.reply(
        network, ids, lengths, stop=(STOP,), max_new=5, seeds=seeds, limits=limits
    )
    assert torch.equal(cut, ends.minimum(limits)) and (ends > limits).any() and (ends < limits).any()
    own = torch.arange(tokens.shape[1]) < cut[:, None]
    assert torch.equal(tokens[own], whole[:, : tokens.shape[1]][own])
    torch.testing.assert_close(log_probs, torch.where(own, whole_log_probs[:, : tokens.shape[1]], 0))
    none = generation.reply(network, ids, lengths, stop=(STOP,), max_new=5, limits=torch.zeros(count))
    assert none[0].shape == (count, 0) and not none[2].any()
