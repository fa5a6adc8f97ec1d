"""Preference reward models with soft labels: the loss, its minimum, and missing labels."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import row_counts, stamp_totals
from lightning_nlf.maths.preferences import pairs
from lightning_nlf.networks import GRUReward
from lightning_nlf.objectives import BradleyTerryReward, SoftPreferenceReward
from lightning_nlf.rewards.soft_preference_reward import soft_labels, soft_preference_loss


def compared(preferences, rank=None):
    """Two replies of one token to each prompt; the first is better with these probabilities."""
    first = torch.tensor(preferences)
    rows = 2 * len(first)
    ids = torch.randint(1, 8, (rows, 3), generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([False, True]).expand(rows, 2)
    preference = torch.stack([first, 1 - first], 1).flatten()
    return Batch(
        obs=ids[:, :-1],
        actions=ids[:, 1:],
        valid=valid,
        mask=valid,
        final_obs=ids[:, -1],
        terminated=torch.ones(rows, dtype=torch.bool),
        group=torch.arange(rows) // 2,
        rank=(preference < 0.5).long() if rank is None else torch.tensor(rank),
        extra={"preference": preference},
    )


def built(family=SoftPreferenceReward, **knobs):
    torch.manual_seed(0)
    return family(reward=GRUReward(8, width=8), **knobs)


def loss_of(module, batch):
    return sum(module.losses(module.prepare(batch)).values())


def test_the_loss_by_hand():
    """d = 1: log σ(1) = −.3132617 and log σ(−1) = −1.3132617.

    p = .8: .8 · .3132617 + .2 · 1.3132617 = .5132617. At p = 1 it is .3132617, as for Bradley-Terry.
    """
    d, p = torch.tensor([1.0, 1.0]), torch.tensor([0.8, 1.0])
    assert soft_preference_loss(d, p).tolist() == pytest.approx([0.5132617, 0.3132617], abs=1e-6)
    with pytest.raises(ValueError, match="shapes: difference"):
        soft_preference_loss(d, p[:1])


def test_the_loss_is_a_mean_over_pairs_wherever_they_are():
    """d = 1 twice, p = .8 and 1: (.5132617 + .3132617)/2; with four pairs, two of them elsewhere, half of that."""
    module = built()
    prepared = module.prepare(compared([0.8, 1.0]))
    now = module.evaluate(prepared)
    now = replace(now, values=torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None] * now.where)
    assert float(module.losses(prepared, now)["soft_preference"]) == pytest.approx(0.4132617, abs=1e-6)
    (part,) = stamp_totals([prepared], {"pairs": torch.tensor(4.0)}, 1)
    assert float(module.losses(part, now)["soft_preference"]) == pytest.approx(0.2066309, abs=1e-6)


def test_it_is_least_where_the_model_is_as_sure_as_the_teacher():
    """The gradient is σ(d) − p, which is 0 at d = log(p / (1 − p)): log 4 for p = .8."""
    d = torch.tensor([math.log(4.0)], requires_grad=True)
    (slope,) = torch.autograd.grad(soft_preference_loss(d, torch.tensor([0.8])).sum(), d)
    assert slope.abs() < 1e-6
    (slope,) = torch.autograd.grad(soft_preference_loss(d, torch.tensor([0.5])).sum(), d)
    assert slope.item() == pytest.approx(0.3, abs=1e-6)


def test_swapping_the_replies_changes_nothing():
    """The probability that B is better is 1 − p, also in swapped order."""
    module, batch = built(), compared([0.9, 0.35])
    swapped = batch[torch.tensor([1, 0, 3, 2])]
    torch.testing.assert_close(loss_of(module, swapped), loss_of(module, batch))


def test_the_label_is_that_of_the_row_that_stands_first():
    """The second row of a pair is better with 1 − p. A ranking that differs does not swap the label."""
    batch = compared([0.3])
    assert soft_labels(pairs(batch.group, batch.rank), batch.extra["preference"]).item() == pytest.approx(0.7)
    against = compared([0.3], rank=[0, 1])
    assert soft_labels(pairs(against.group, against.rank), against.extra["preference"]).item() == pytest.approx(0.3)


def test_where_nobody_said_how_sure_the_ranking_is_certain():
    """Pairs without a tie as in Bradley-Terry; a tie has label .5 in both orders, log 2 at equal rewards."""
    strict = replace(compared([math.nan, math.nan], rank=[0, 1, 1, 0]))
    expected = loss_of(built(BradleyTerryReward), strict)
    torch.testing.assert_close(loss_of(built(), strict), expected)
    torch.testing.assert_close(loss_of(built(), replace(strict, extra={})), expected)
    tie = compared([math.nan], rank=[0, 0])[torch.tensor([0, 0])]
    torch.testing.assert_close(loss_of(built(), tie), torch.tensor(math.log(2)))


def test_the_gradient_does_not_depend_on_how_groups_were_cut():
    module = built()
    batch = module.prepare(compared([0.9, 0.2, 0.5, 0.6]))
    totals = {name: count.sum().float() for name, count in row_counts(batch).items()}
    parts = [batch[torch.tensor(rows)] for rows in ([0, 1], [2, 3, 4, 5, 6, 7])]
    whole, cut, apart = (
        sum(sum(module.losses(part).values()) for part in cuts) / len(cuts)
        for cuts in ([batch], stamp_totals(parts, totals, 2), parts)
    )
    torch.testing.assert_close(cut, whole)
    assert not torch.isclose(apart, whole)


def test_what_is_learned_is_as_sure_as_the_labels():
    """Two distinct replies, preferred with .8 in every pair: σ of the difference converges to .8."""
    batch = compared([0.8])
    batch = replace(batch, obs=torch.tensor([[1, 1], [1, 1]]), actions=torch.tensor([[1, 2], [1, 3]]))
    batch = replace(batch, final_obs=torch.tensor([2, 3]))
    module = built()
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss_of(module, batch).backward()
        optimizer.step()
    rewards = module.evaluate(module.prepare(batch)).values[:, -1]
    assert (rewards[0] - rewards[1]).sigmoid().item() == pytest.approx(0.8, abs=5e-3)
