"""Hand-worked values of the shared maths, and properties that every objective relies on."""

import math

import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.maths.distributions import distribution_of, params_of
from lightning_nlf.maths.means import (
    check_shapes,
    comparison_shares,
    count_of,
    mask_named,
    masked_mean,
    row_counts,
    stamp_totals,
)
from lightning_nlf.maths.returns import episode_gae, gae, reverse_recurrence
from lightning_nlf.maths.schedules import Linear, scheduled
from lightning_nlf.maths.steps import best_rows, followed, next_valid, takeover_cuts, with_final_obs
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.objective import Term

TRUE = torch.tensor(True)


def row(*values):
    return torch.tensor([values], dtype=torch.float32)


def flags(*values):
    return torch.tensor([values], dtype=torch.bool)


def test_gae_by_hand():
    """r=[0,0,1], V=[.1,.2,.3], γ=1, λ=.95, terminated.

    δ = [0+.2−.1, 0+.3−.2, 1+0−.3] = [.1, .1, .7];  A₂=.7, A₁=.1+.95·.7=.765, A₀=.1+.95·.765=.82675.
    """
    advantages = gae(row(0, 0, 1), row(0.1, 0.2, 0.3), torch.zeros(1), flags(1, 1, 1), 1.0, 0.95)
    torch.testing.assert_close(advantages, row(0.82675, 0.765, 0.7))


def in_parts(lengths, order):
    """Episodes of 4 and 3 steps, whole, or cut into parts of `lengths`, with rows in another `order`."""
    torch.manual_seed(0)
    valid = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 1, 1, 0]]).bool()  # with a token of the environment inside each
    rewards, values = torch.randn(2, 5), torch.randn(2, 5)
    whole = Batch(obs=rewards, actions=rewards, valid=valid, mask=valid, rewards=rewards)
    places = []  # (episode, part, first, last)
    for episode in range(2):
        first = 0
        for part, length in enumerate(lengths):
            places.append((episode, part, first, first + length))
            first += length
    places = [places[i] for i in order]

    def parts_of(x):
        return torch.nn.utils.rnn.pad_sequence([x[e, a:b] for e, _, a, b in places], batch_first=True)

    parts = Batch(
        obs=parts_of(rewards), actions=parts_of(rewards), valid=parts_of(valid), mask=parts_of(valid),
        rewards=parts_of(rewards),
        extra={"episode": torch.tensor([7 - e for e, *_ in places]), "part": torch.tensor([p for _, p, *_ in places])},
    )  # fmt: skip
    return whole, values, parts, parts_of


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (4, 2, 0, 5, 3, 1)])
def test_gae_of_an_episode_in_parts_is_that_of_one_long_row(order):
    """Parts of 2, 2 and 1 steps; only the bootstrap of the last part counts; a take-over is cut within a part."""
    whole, values, parts, parts_of = in_parts((2, 2, 1), order)
    cut = torch.tensor([[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    bootstrap = torch.tensor([3.0, -2.0])
    last = parts.extra["part"] == 2
    of_rows = torch.where(last, bootstrap[7 - parts.extra["episode"]], 100.0)
    assert torch.equal(followed(parts), ~last) and not followed(whole).any()
    for cuts in (None, cut):
        long = gae(whole.rewards, values, bootstrap, whole.valid, 0.9, 0.8, cuts)
        short = episode_gae(parts, parts_of(values), of_rows, 0.9, 0.8, None if cuts is None else parts_of(cuts))
        torch.testing.assert_close(short, parts_of(long))
    torch.testing.assert_close(
        episode_gae(whole, values, bootstrap, 0.9, 0.8), gae(whole.rewards, values, bootstrap, whole.valid, 0.9, 0.8)
    )


def test_gae_by_hand_over_two_rows():
    """The same as in one row: r=[0 | 0, 1], V=[.1 | .2, .3], γ=1, λ=.95 → A=[.82675 | .765, .7]. A row without valid
    steps between them changes nothing."""
    valid = torch.tensor([[1, 0], [0, 0], [1, 1]]).bool()
    rewards = torch.tensor([[0.0, 9], [9, 9], [0, 1]])
    parts = Batch(
        obs=rewards, actions=rewards, valid=valid, mask=valid, rewards=rewards,
        extra={"episode": torch.zeros(3, dtype=torch.long), "part": torch.arange(3)},
    )  # fmt: skip
    values = torch.tensor([[0.1, 5], [5, 5], [0.2, 0.3]])
    advantages = episode_gae(parts, values, torch.tensor([8.0, 8, 0]), 1.0, 0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.82675, 0], [0, 0], [0.765, 0.7]]))


def test_gae_bootstraps_a_truncated_row():
    """One step, r=1, V=2, V(s_T)=5, γ=.9: A = 1 + .9·5 − 2 = 3.5."""
    torch.testing.assert_close(gae(row(1), row(2), torch.tensor([5.0]), flags(1), 0.9, 0.95), row(3.5))


def test_lambda_one_is_monte_carlo():
    """γ=.5, r=[1,2,4], V(s_T)=8: G₂=4+4=8, G₁=2+4=6, G₀=1+3=4; A = G − V for any V."""
    values = row(0.3, -1, 7)
    advantages = gae(row(1, 2, 4), values, torch.tensor([8.0]), flags(1, 1, 1), 0.5, 1.0)
    torch.testing.assert_close(advantages + values, row(4, 6, 8))


def test_lambda_zero_is_one_step():
    """A_t = r_t + γV_{t+1} − V_t: [1+.5·2−1, 1+.5·3−2, 1+.5·0−3] = [1, .5, −2]."""
    advantages = gae(row(1, 1, 1), row(1, 2, 3), torch.zeros(1), flags(1, 1, 1), 0.5, 0.0)
    torch.testing.assert_close(advantages, row(1, 0.5, -2))


def test_environment_tokens_and_padding_do_not_count():
    """An episode with a token of the environment inside and padding at the end has the same advantages."""
    plain = gae(row(1, 2, 3), row(0.1, 0.2, 0.3), torch.tensor([2.0]), flags(1, 1, 1), 0.9, 0.8)
    spread = gae(
        row(99, 1, math.nan, 2, 3, 99),
        row(99, 0.1, 99, 0.2, 0.3, math.nan),
        torch.tensor([2.0]),
        flags(0, 1, 0, 1, 1, 0),
        0.9,
        0.8,
    )
    torch.testing.assert_close(spread, row(0, plain[0, 0], 0, plain[0, 1], plain[0, 2], 0))


def test_a_cut_ends_the_return_with_the_next_value():
    """γ=1, λ=1, r=1 each, V=[0,10,20], cut after step 0: A₀ = 1 + 10 − 0 = 11; steps 1, 2 do not change."""
    advantages = gae(row(1, 1, 1), row(0, 10, 20), torch.zeros(1), flags(1, 1, 1), 1.0, 1.0, flags(1, 0, 0))
    torch.testing.assert_close(advantages, row(11, 2 - 10, 1 - 20))


def test_takeover_cuts_where_somebody_else_goes_on():
    """Learner, learner, expert, (environment), learner, end: the only cut is at the second step."""
    mask, valid = flags(1, 1, 0, 0, 1), flags(1, 1, 1, 0, 1)
    assert takeover_cuts(mask, valid).tolist() == [[False, True, False, False, False]]


def test_recurrence_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    add, factor = torch.rand(3, 37, generator=generator), torch.rand(3, 37, generator=generator)
    expected, following = torch.zeros(3, 37), torch.zeros(3)
    for t in reversed(range(37)):
        following = expected[:, t] = add[:, t] + factor[:, t] * following
    torch.testing.assert_close(reverse_recurrence(add, factor), expected)


def test_the_final_observation_stands_behind_the_last_valid_step():
    """Rows of 2 and 1 valid steps, the second followed by a token of the environment."""
    valid = flags(1, 1, 0).repeat(2, 1) & torch.tensor([[True], [False]]) | torch.tensor(
        [[False] * 3, [True, False, False]]
    )
    ids = torch.tensor([[3, 4, 0], [5, 6, 0]])
    rows = Batch(obs=ids, actions=ids, valid=valid, mask=valid, final_obs=torch.tensor([8, 9]))
    obs, where = with_final_obs(rows)
    assert obs.tolist() == [[3, 4, 8, 0], [5, 9, 0, 0]]
    assert where.int().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_next_valid_skips_what_is_not():
    x, last = row(1, 2, 3, 4), torch.tensor([9.0])
    assert next_valid(x, flags(1, 0, 1, 0), last).tolist() == [[3, 3, 9, 9]]


def test_masked_mean_ignores_padding_even_if_it_is_nan():
    assert masked_mean(row(2, 4, math.nan), flags(1, 1, 0)) == 3


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(row(1, 2), flags(0, 0)) == 0


def test_a_mean_with_a_count_below_one():
    """One label in one of four micro-batches: the count is 1/4, so the average over the four is the label's value."""
    module, step = ObjectiveModule(), flags(1)
    rows = [Batch(row(0), row(0), step, step).with_masks(labels=flags(on)) for on in (0, 0, 1, 0)]
    parts = stamp_totals(rows, {"labels": torch.tensor(1.0)}, 4)
    assert [count_of(part, "labels") for part in parts] == [0.25] * 4
    assert sum(module.mean(Term("x", row(7), "labels"), part) for part in parts) / 4 == 7


def labelled():
    """Two rows of 3 and 2 steps: the learner has 2 and 0 of them, an expert labels 1; the first row is good."""
    valid, mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool(), torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()
    rows = Batch(torch.zeros(2, 3), torch.zeros(2, 3), valid, mask, expert_mask=valid & ~mask & flags(1, 0, 0))
    return rows.with_masks(good=torch.tensor([True, False]))


def test_counts_of_rows_by_hand():
    """Without ranks there are no comparisons."""
    counts = {name: count.tolist() for name, count in row_counts(labelled()).items()}
    steps = {"valid": [3, 2], "mask": [2, 0], "expert_mask": [0, 1], "good": [1, 0]}
    assert counts == steps | dict.fromkeys(("pairs", "strict_pairs", "rankings"), [0, 0])
    assert [int(count_of(labelled(), name)) for name in steps] == [5, 2, 1, 1]


def test_a_mask_by_its_name():
    rows = labelled()
    assert mask_named(rows, "mask") is rows.mask and mask_named(rows, "good") is rows.masks["good"]
    unlabelled = Batch(rows.obs, rows.actions, rows.valid, rows.mask)
    assert not mask_named(unlabelled, "expert_mask").any()
    with pytest.raises(KeyError, match="bad"):
        mask_named(rows, "bad")


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2,), (3,), (2, 3, 1), ()])
def test_shapes_that_would_broadcast_are_refused(shape):
    check_shapes(2, a=torch.zeros(2, 3), b=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"a \(2, 3\), b \("):
        check_shapes(2, a=torch.zeros(2, 3), b=torch.zeros(shape))


def test_tensors_of_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="with 1 dimensions"):
        check_shapes(1, a=torch.zeros(2, 3), b=torch.zeros(2, 3))


def test_schedules():
    assert [Linear(1.0, 0.2, 10)(t) for t in (0, 5, 10, 99)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert scheduled(0.3, 1e9) == 0.3


def test_a_schedule_over_no_steps_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        Linear(1, 0, 0)


@pytest.mark.parametrize(
    "params",
    [{"mean": torch.randn(5, 2), "std": torch.rand(5, 2) + 0.1}, {"logits": torch.randn(5, 3).log_softmax(-1)}],
)
def test_a_distribution_and_its_parameters_are_one(params):
    restored = params_of(distribution_of(params))
    assert restored.keys() == params.keys()
    for name, x in params.items():
        torch.testing.assert_close(restored[name], x)


def test_a_point_mass_has_no_distribution():
    with pytest.raises(ValueError, match="nll"):
        distribution_of({"mean": torch.zeros(1, 1), "std": torch.zeros(1, 1)})


def test_comparison_shares_sum_to_what_a_group_compares():
    """Group 7 is B > C = D > A: C(4, 2) = 6 pairs, one of them a tie. Group 3 is one tie, group 9 one row."""
    group = torch.tensor([7, 7, 7, 7, 3, 3, 9, 9])
    shares = comparison_shares(group, torch.tensor([2, 0, 1, 1, 0, 0, -1, 4]))
    sums = {name: [float(share[group == g].sum()) for g in (7, 3, 9)] for name, share in shares.items()}
    assert sums == {"pairs": [6, 1, 0], "strict_pairs": [5, 0, 0], "rankings": [1, 0, 0]}


def test_the_best_row_of_each_group_is_the_first_of_equals():
    score, group = torch.tensor([1.0, 3.0, 3.0, -5.0, 0.0]), torch.tensor([7, 7, 7, 2, 4])
    assert best_rows(score, group).tolist() == [3, 4, 1]


def test_rows_are_counted_by_masks_of_rows_and_of_steps_and_where_there_are_none():
    steps = torch.tensor([[True, True, False], [True, False, False]])
    rows = Batch(steps, steps, steps, steps, masks={"good": torch.tensor([False, True]), "first": steps & False})
    counts = row_counts(rows)
    assert {name: counts[name].tolist() for name in ("mask", "good", "first", "expert_mask")} == {
        "mask": [2, 1],
        "good": [0, 1],
        "first": [0, 0],
        "expert_mask": [0, 0],
    }
    assert all(count.shape == (0,) for count in row_counts(rows[:0]).values())
