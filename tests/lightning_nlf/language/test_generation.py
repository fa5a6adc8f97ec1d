"""The token loop against the forward pass of training, and turns against the whole dialogue at once."""

import pytest
import torch

from lightning_nlf.language import generation
from lightning_nlf.networks import DecoderShape, GRUPolicy, TransformerPolicy

STOP = 0
GOLDEN, WORD = 0x9E3779B97F4A7C15, 2**64  # SplitMix64: increment of its state, and its modulus


def policy(seed=0):
    torch.manual_seed(seed)
    network = GRUPolicy(vocabulary=6, width=16)
    with torch.no_grad():
        network.head.weight *= 8  # an untrained head is nearly uniform, and would hide exchanged rows
    return network


def transformer():
    torch.manual_seed(0)
    return TransformerPolicy(DecoderShape(6, layers=2, heads=2, width=16, context=16, init_std=0.4))


def certain_of(probabilities):
    """A policy with these probabilities for every next token."""
    network = GRUPolicy(vocabulary=len(probabilities), width=2)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor(probabilities).log())
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
        text = torch.cat([prompts[row, : lengths[row]], first[row, :a], torch.tensor([1]), second[row, :b]])
        log_probs = network(text[None, :-1]).log_prob(text[None, 1:])[0]
        start = int(lengths[row]) - 1
        torch.testing.assert_close(log_probs[start : start + a], first_log_probs[row, :a])
        torch.testing.assert_close(log_probs[start + a + 1 :], second_log_probs[row, :b])


@torch.no_grad()
def test_a_reply_ends_with_its_first_stop_token_and_is_padded_behind():
    torch.manual_seed(1)
    tokens, log_probs, count, _ = generation.reply(
        policy(), torch.full((200, 1), 2), torch.ones(200, dtype=torch.long), stop=(STOP,), max_new=5
    )
    assert len(count.unique()) > 1  # there are rows of several lengths
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
    """Rows with the limits 0, 1, 2, 3, 4, 5, repeated: each is the beginning of the reply without a limit."""
    network, count = policy(), 120
    ids, lengths, seeds = torch.full((count, 1), 2), torch.ones(count, dtype=torch.long), torch.arange(count)
    limits = torch.arange(count) % 6
    whole, whole_log_probs, ends, _ = generation.reply(network, ids, lengths, stop=(STOP,), max_new=5, seeds=seeds)
    tokens, log_probs, cut, _ = generation.reply(
        network, ids, lengths, stop=(STOP,), max_new=5, seeds=seeds, limits=limits
    )
    assert torch.equal(cut, ends.minimum(limits)) and (ends > limits).any() and (ends < limits).any()
    inside = torch.arange(tokens.shape[1]) < cut[:, None]
    assert torch.equal(tokens[inside], whole[:, : tokens.shape[1]][inside])
    torch.testing.assert_close(log_probs, torch.where(inside, whole_log_probs[:, : tokens.shape[1]], 0))
    none = generation.reply(network, ids, lengths, stop=(STOP,), max_new=5, limits=torch.zeros(count))
    assert none[0].shape == (count, 0) and not none[2].any()


# ---- what is sampled from


@pytest.mark.parametrize(
    ("knobs", "left"),
    [
        ({}, {0: 0.15, 1: 0.5, 2: 0.05, 3: 0.3}),
        ({"top_p": 0.7}, {1: 0.625, 3: 0.375}),  # .5 is not enough, .5 + .3 is; normalised to 1
        ({"top_k": 2}, {1: 0.625, 3: 0.375}),
        ({"top_p": 1e-6}, {1: 1.0}),  # at least one token remains
        ({"top_k": 1}, {1: 1.0}),
        ({"top_k": 3, "top_p": 0.51}, {1: 1.0}),  # of the three remaining tokens the first has .5 / .95 = .526
        ({"temperature": 2.0}, {0: 0.207585, 1: 0.378996, 2: 0.119849, 3: 0.293569}),  # √.15 of √.15 + √.5 + …
        ({"temperature": 0.5, "top_k": 2}, {1: 25 / 34, 3: 9 / 34}),  # .25 and .09 of .34
        ({"temperature": 0.5, "top_p": 0.6}, {1: 1.0}),  # .25 of .365 are .68 already
        ({"top_k": 9}, {0: 0.15, 1: 0.5, 2: 0.05, 3: 0.3}),  # more than there are tokens
    ],
)
@torch.no_grad()
def test_top_k_and_top_p_by_hand(knobs, left):
    """Probabilities .15, .5, .05 and .3: remaining tokens, stored log-probabilities, and sampling frequencies."""
    tokens, log_probs, _, _ = generation.reply(
        certain_of([0.15, 0.5, 0.05, 0.3]), torch.tensor([[2]]), torch.tensor([1]), stop=(STOP,), max_new=1,
        copies=20_000, seeds=torch.arange(20_000), **knobs,
    )  # fmt: skip
    assert set(tokens[:, 0].tolist()) == set(left)
    for token, probability in left.items():
        sampled = tokens[:, 0] == token
        expected = torch.tensor(probability).log().expand(int(sampled.sum()))
        torch.testing.assert_close(log_probs[sampled, 0], expected, rtol=0, atol=1e-5)
        assert sampled.float().mean().item() == pytest.approx(probability, abs=0.015)  # four standard errors


@torch.no_grad()
def test_a_temperature_of_sampling_draws_as_a_policy_of_that_temperature():
    """Equal bit for bit, and 1 equals the default; the most likely reply does not depend on it."""

    def sampled(own_heat=1.0, **knobs):
        torch.manual_seed(0)
        network = TransformerPolicy(DecoderShape(6, layers=2, heads=2, width=16, context=16), temperature=own_heat)
        ids, lengths = torch.tensor([[2]]), torch.tensor([1])
        seeds = torch.arange(200)
        return generation.reply(network, ids, lengths, stop=(STOP,), max_new=5, copies=200, seeds=seeds, **knobs)[:3]

    def are_equal(a, b):
        return all(x.shape == y.shape and bool((x == y).all()) for x, y in zip(a, b, strict=True))

    assert are_equal(sampled(temperature=0.3), sampled(own_heat=0.3)) and not are_equal(
        sampled(temperature=0.3), sampled()
    )
    assert are_equal(sampled(temperature=1.0), sampled())
    likeliest = [sampled(temperature=heat, deterministic=True)[0] for heat in (0.3, 1.0, 3.0)]
    assert are_equal(likeliest[:2], likeliest[1:])


# ---- chance


def split_mix(seed, count):
    """The published generator in plain integers: its first `count` outputs."""
    shares = []
    for step in range(1, count + 1):
        z = (seed + step * GOLDEN) % WORD
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        shares.append(z ^ (z >> 31))
    return shares


def test_the_stream_of_a_seed_is_that_of_splitmix64():
    """Published first outputs for the seeds 0 and 1234567. A negative int64 stands for that number plus 2^64."""
    assert split_mix(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert split_mix(1234567, 2) == [6457827717110365317, 3203168211198807973]
    seeds = [0, 1234567, 1, 2**62 - 1, 2**63 - 1, -1, -(2**63)]
    numbers = generation.uniforms(torch.tensor(seeds), 40)
    expected = [[(x >> 11) * 2.0**-53 for x in split_mix(seed, 40)] for seed in seeds]
    assert numbers.dtype == torch.float64 and numbers.tolist() == expected
    assert numbers[0, 0] == (0xE220A8397B1DCDAF >> 11) * 2.0**-53


def test_neighbouring_seeds_and_steps_are_uniform_and_independent():
    """Mean ½, variance 1/12, uniform tenths, and correlations of 0; all within five standard errors."""
    count = 40_000
    x = generation.uniforms(torch.arange(count), 3)
    assert (x >= 0).all() and (x < 1).all()
    error = 5 / count**0.5
    for column in x.T:
        assert column.mean().item() == pytest.approx(0.5, abs=error * 12**-0.5)
        assert column.var().item() == pytest.approx(1 / 12, abs=error * 180**-0.5)
        assert (column.histc(10, 0, 1) / count - 0.1).abs().max() < error * 0.3
    beside = torch.stack([x[:-1, 0], x[1:, 0], x[:-1, 1], x[:-1, 2]]).corrcoef()  # next seed, next steps
    assert (beside - torch.eye(4)).abs().max() < error


# ---- work


@pytest.mark.parametrize("network", [policy, transformer])
@torch.no_grad()
def test_a_prompt_is_read_once_and_finished_rows_leave_the_batch(network):
    """Two prompts, 24 replies to each: two rows are read, then the running rows and at most a third more."""
    network, rows = network(), []
    read = network.read

    def counted(ids, lengths, *rest, **how):
        rows.append(len(ids))
        return read(ids, lengths, *rest, **how)

    network.read = counted
    prompts, lengths = torch.tensor([[2, 3, 4], [5, 1, 0]]), torch.tensor([3, 2])
    *_, count, _ = generation.reply(
        network, prompts, lengths, stop=(STOP, 1, 3), max_new=8, copies=24, seeds=torch.arange(48)
    )
    running = [int((count > step).sum()) for step in range(1, int(count.max()))]  # before each token except the first
    assert rows[0] == 2 and len(rows) == 1 + len(running)  # the last token is never read
    for row_count, left in zip(rows[1:], running, strict=True):
        assert left <= row_count and (row_count == left or left > generation.COMPACT_AT * row_count)
    assert running[-1] < 12 and sum(rows) < 0.7 * 48 * len(rows)
