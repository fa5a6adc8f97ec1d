"""Outcome rewards: one label per reply, read after its last token."""

from dataclasses import replace

import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import row_counts, stamp_totals
from lightning_nlf.networks import GRUReward
from lightning_nlf.objectives import OutcomeReward


def scored_rows():
    """Three replies of 4, 3 and 2 tokens; the last one has no label."""
    ids = torch.randint(1, 5, (3, 5), generator=torch.Generator().manual_seed(0))
    valid = torch.arange(4) < torch.tensor([[4], [3], [2]])
    return Batch(
        obs=ids[:, :-1],
        actions=ids[:, 1:],
        valid=valid,
        mask=valid,
        score=torch.tensor([1.0, 0.0, torch.nan]),
        final_obs=torch.stack([ids[0, 4], ids[1, 3], ids[2, 2]]),
        terminated=torch.ones(3, dtype=torch.bool),
        extra={"scored": torch.tensor([True, True, False])},
    )


def built():
    torch.manual_seed(0)
    return OutcomeReward(reward=GRUReward(5, width=16))


def loss_of(module, prepared):
    return module.losses(prepared)["outcome"]


def test_a_reply_is_read_behind_its_last_token():
    """−log σ(r) of the right reply and −log σ(−r) of the wrong one, half of each; the third does not count."""
    module = built()
    batch = module.prepare(scored_rows())
    with torch.no_grad():
        right = module.reward(torch.cat([batch.obs[:1], batch.final_obs[:1, None]], 1))[0, -1]
        wrong = module.reward(torch.cat([batch.obs[1:2, :3], batch.final_obs[1:2, None]], 1))[0, -1]
    expected = (torch.log1p(torch.exp(-right)) + torch.log1p(torch.exp(wrong))) / 2
    torch.testing.assert_close(loss_of(module, batch), expected)
    where = module.evaluate(batch).where
    assert where.nonzero().tolist() == [[0, 3], [1, 2]]
    assert not module.by_step


def test_an_unknown_score_leaves_no_trace_in_the_gradient():
    module = built()
    batch = module.prepare(scored_rows())
    loss_of(module, batch).backward()
    whole = [p.grad.clone() for p in module.reward.parameters()]
    module.zero_grad()
    loss_of(module, batch[:2]).backward()
    for gradient, second in zip(whole, (p.grad for p in module.reward.parameters()), strict=True):
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, second)


def test_the_loss_does_not_depend_on_how_rows_were_cut():
    module = built()
    batch = module.prepare(scored_rows())
    totals = {name: count.sum() for name, count in row_counts(batch).items()}
    assert totals["labelled"] == 2
    parts = stamp_totals([batch[:1], batch[1:]], totals, 2)
    torch.testing.assert_close(sum(loss_of(module, part) for part in parts) / 2, loss_of(module, batch))


def test_a_probability_is_paid_on_the_last_token():
    module = built()
    batch = module.prepare(scored_rows())
    where = module.evaluate(batch).where
    rewards = module.judge(batch, where)
    torch.testing.assert_close(rewards, torch.where(where, module.evaluate(batch).values.detach().sigmoid(), 0))


def test_scores_are_asked_for_and_checked():
    batch = scored_rows()
    with pytest.raises(ValueError, match="scored"):
        built().prepare(replace(batch, extra={}))
    with pytest.raises(ValueError, match="scored"):
        built().prepare(replace(batch, score=None))
    with pytest.raises(ValueError, match="score: labels are from 0 to 2.*a reward from rankings"):
        built().prepare(replace(batch, score=2 * batch.score))
