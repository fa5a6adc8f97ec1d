"""Pairs, ties and rankings: hand-worked values of the published formulas."""

import itertools
import math

import pytest
import torch

from lightning_nlf.maths.preferences import (
    bradley_terry_loss,
    davidson_log_probs,
    outcome_loss,
    pairs,
    plackett_luce_loss,
    rankings,
    rao_kupper_log_probs,
)

# B > C = D > A, with the rows in the order A, B, C, D
SCORES = torch.tensor([-1.0, 2.0, 1.0, 0.5])
GROUP, RANK = torch.zeros(4, dtype=torch.long), torch.tensor([2, 0, 1, 1])


def long(*values):
    return torch.tensor(values)


def test_rankings_hold_each_group_best_first():
    table = rankings(long(5, 2, 5, 2, 5, 5), long(1, 0, 0, -1, -1, 2))
    assert table.tolist() == [[1, -1, -1], [2, 0, 5]]


def test_pairs_are_those_of_a_group_and_the_better_is_first():
    """Rows 0, 1, 2 of one group, 3 and 5 of another; row 4 is unranked: C(3, 2) + C(2, 2) = 4 pairs, one tie."""
    result = pairs(long(1, 1, 1, 0, 0, 0), long(3, 0, 0, 1, -1, 0))
    assert set(zip(result.better.tolist(), result.worse.tolist(), result.tie.tolist(), strict=True)) == {
        (1, 2, True),
        (1, 0, False),
        (2, 0, False),
        (5, 3, False),
    }


def test_nothing_ranked_is_no_pair_and_no_loss():
    unranked = torch.full((4,), -1)
    assert len(pairs(GROUP, unranked).tie) == 0
    scores = SCORES.clone().requires_grad_()
    loss = plackett_luce_loss(scores, GROUP, unranked)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert not scores.grad.any()


def test_bradley_terry_over_the_strict_pairs_of_a_ranking():
    """−log σ(d) for d = 1, 1.5, 3, 2, 1.5: .3132617 + .2014133 + .0485874 + .1269280 + .2014133; 0 for the tie."""
    ranked = pairs(GROUP, RANK)
    loss = bradley_terry_loss(ranked.difference(SCORES), ranked.tie)
    assert loss[ranked.tie].tolist() == [0]
    expected = [0.0485874, 0.1269280, 0.2014133, 0.2014133, 0.3132617]
    assert sorted(loss[~ranked.tie].tolist()) == pytest.approx(expected, abs=1e-6)


def test_the_margin_is_taken_off_the_difference():
    """d = 3 with m = 1: −log σ(2) = .1269280."""
    d, strict = torch.tensor([3.0]), torch.tensor([False])
    torch.testing.assert_close(bradley_terry_loss(d, strict, torch.tensor([1.0])), torch.tensor([0.1269280]))


def test_swapping_a_pair_negates_the_logit_and_swaps_win_and_lose():
    d = torch.linspace(-4, 4, 9)
    result, swapped = pairs(GROUP[:2], long(0, 1)), pairs(GROUP[:2], long(1, 0))
    assert torch.equal(result.difference(SCORES[:2]), -swapped.difference(SCORES[:2]))
    for log_probs in (rao_kupper_log_probs(d, 0.7), davidson_log_probs(d, 0.3)):
        torch.testing.assert_close(log_probs, log_probs.flip(0).flip(1))


def test_ties_of_one_pair():
    """d = .15. Rao-Kupper, θ = 3: win = e^d/(e^d + 3) = 1.1618342/4.1618342 = .2791640, lose = 1/(1 + 3e^d) = .2229405.

    Davidson, ν = 1: Z = e^.075 + e^−.075 + 2 = 1.0778842 + .9277435 + 2 = 4.0056277; win .2690924, tie .4992975.
    """
    d = torch.tensor([0.15])
    expected = torch.tensor([[0.2791640, 0.4978956, 0.2229405]])
    torch.testing.assert_close(rao_kupper_log_probs(d, math.log(3)).exp(), expected, atol=1e-6, rtol=0)
    expected = torch.tensor([[0.2690924, 0.4992975, 0.2316100]])
    torch.testing.assert_close(davidson_log_probs(d, 0.0).exp(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("log_probs", [rao_kupper_log_probs, davidson_log_probs])
@pytest.mark.parametrize("parameter", [0.0, 0.01, 2.0, 30.0])
def test_win_tie_and_lose_have_probability_one(log_probs, parameter):
    d = torch.tensor([-60.0, -3.0, 0.0, 0.15, 40.0])
    torch.testing.assert_close(log_probs(d, parameter).exp().sum(-1), torch.ones(5))


def test_the_outcome_that_was_said_is_scored():
    """P = (.5, .3, .2) of (win, tie, lose): −ln .5 = .6931472 for a win, −ln .3 = 1.2039728 for a tie."""
    log_probs = torch.tensor([[0.5, 0.3, 0.2]] * 2).log()
    loss = outcome_loss(log_probs, torch.tensor([False, True]))
    assert loss.tolist() == pytest.approx([0.6931472, 1.2039728], abs=1e-6)


@pytest.mark.parametrize(("log_probs", "none"), [(rao_kupper_log_probs, 0.0), (davidson_log_probs, -math.inf)])
def test_without_ties_in_the_model_it_is_bradley_terry(log_probs, none):
    d, strict = torch.tensor([0.15, -2.0], requires_grad=True), torch.zeros(2, dtype=torch.bool)
    ours, theirs = outcome_loss(log_probs(d, none), strict), bradley_terry_loss(d, strict)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), d)[0] for x in (ours, theirs)))
    assert outcome_loss(log_probs(d, none), ~strict).tolist() == [math.inf] * 2


@pytest.mark.parametrize(
    ("log_probs", "best"),
    [(rao_kupper_log_probs, math.log(1.25 / 0.75)), (davidson_log_probs, math.log(0.25 / 0.75))],
)
def test_the_tie_parameter_is_best_at_the_rate_of_ties(log_probs, best):
    """One of four equal pairs is a tie, p = 1/4. At d = 0: Rao-Kupper P(tie) = (θ − 1)/(θ + 1), so θ = (1 + p)/(1 − p);

    Davidson P(tie) = ν/(1 + ν), so ν = p/(1 − p).
    """
    tie = torch.tensor([True, False, False, False])

    def loss(parameter):
        return outcome_loss(log_probs(torch.zeros(4), parameter), tie).mean()

    parameter = torch.tensor(best, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(parameter), parameter)
    torch.testing.assert_close(slope, torch.tensor(0.0), atol=1e-6, rtol=0)
    assert loss(best) < min(loss(best + e) for e in (-0.1, 0.1))


def by_permutations(scores, rank):
    """P(the ranking): the sum of P(order) over all orders that agree with it."""
    total = 0.0
    for order in itertools.permutations(range(len(scores))):
        if [rank[row] for row in order] == sorted(rank):
            weights = [math.exp(scores[row]) for row in order]
            total += math.prod(weight / sum(weights[place:]) for place, weight in enumerate(weights))
    return total


def test_plackett_luce_of_two_is_bradley_terry():
    scores, rank = torch.tensor([0.3, -0.4]), long(1, 0)
    result = pairs(GROUP[:2], rank)
    expected = bradley_terry_loss(result.difference(scores), result.tie)
    torch.testing.assert_close(plackett_luce_loss(scores, GROUP[:2], rank), expected)


@pytest.mark.parametrize(
    "rank",
    [[2, 0, 1, 1, 3], [0, 0, 0, 0, 1], [0, 1, 1, 1, 1], [4, 3, 2, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
)
def test_tied_blocks_are_summed_over_their_orders(rank):
    scores = [-1.0, 2.0, 1.0, 0.5, -0.3]
    expected = torch.tensor(-math.log(by_permutations(scores, rank)))
    loss = plackett_luce_loss(torch.tensor(scores), torch.zeros(5, dtype=torch.long), torch.tensor(rank))
    torch.testing.assert_close(loss, expected[None], atol=2e-6, rtol=0)


def test_rankings_that_say_nothing_cost_nothing():
    """Two groups without ties, one that is a single tie, one with a single row; an unranked row changes nothing."""
    scores = torch.tensor([0.3, -0.4, 2.0, 1.0, 7.0, 1.0, 1.0, 3.0])
    group, rank = long(0, 0, 4, 4, 4, 2, 2, 9), long(0, 1, 1, 0, -1, 0, 0, 0)
    first, second = math.log1p(math.exp(-0.7)), math.log1p(math.exp(1.0))
    loss = plackett_luce_loss(scores, group, rank)  # for the groups 0, 2, 4, 9
    torch.testing.assert_close(loss, torch.tensor([first, 0, second, 0]))


@pytest.mark.parametrize("scores", [[0.5] * 6 + [0.1], [0.0, 1, 2, 3, 4, 5, 0], [3.0, -3, 0, 1, -1, 2, -2]])
def test_a_tie_of_six_is_the_sum_over_its_720_orders(scores):
    """Also if scores differ widely."""
    rank, group = long(*[0] * 6, 1), torch.zeros(7, dtype=torch.long)
    loss = plackett_luce_loss(torch.tensor(scores), group, rank)
    assert float(loss) == pytest.approx(-math.log(by_permutations(scores, rank.tolist())), abs=1e-5)


@pytest.mark.parametrize("size", [7, 50, 400])
def test_a_large_tie_of_equal_scores_by_hand(size):
    """m equal rows before another equal row: each of the m + 1 is last with the same probability, P = 1 / (m + 1)."""
    scores = torch.full((size + 1,), 0.7, requires_grad=True)
    loss = plackett_luce_loss(scores, torch.zeros(size + 1, dtype=torch.long), long(*[0] * size, 1))
    assert loss.item() == pytest.approx(math.log(size + 1), abs=1e-4)
    loss.sum().backward()  # by symmetry, and a constant added to all scores changes nothing
    assert scores.grad[:-1].std() < 1e-5 and abs(float(scores.grad.sum())) < 1e-4


def test_large_scores_overflow_nothing():
    scores = torch.tensor([300.0, -300.0, 0.0, 0.0], requires_grad=True)
    loss = plackett_luce_loss(scores, GROUP, long(1, 0, 2, 2))
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([600.0]))
    assert torch.isfinite(scores.grad).all()
