"""Rejection sampling: which rows are kept, by which score; and expert iteration on dialogues."""

import math
from dataclasses import replace

import lightning as L
import pytest
import torch

from data_modules.text import TokenTaskDataModule
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import RejectionSamplingPolicy
from lightning_nlf.objectives.rejection_sampling import best_of_group


@pytest.mark.parametrize(
    ("top", "selected"),
    [
        (0.25, [1, 0, 0, 0, 1, 1, 0]),  # one of 4; the second group has 2 scored rows with a tie
        (0.5, [1, 1, 1, 0, 1, 1, 0]),  # two of 4, and ties with the second
        (1.0, [1, 1, 1, 1, 1, 1, 0]),
    ],
)
def test_the_best_of_each_group(top, selected):
    score = torch.tensor([9.0, 5, 5, 1, 2, 2, math.nan])
    assert best_of_group(score, torch.tensor([0, 0, 0, 0, 1, 1, 1]), top).tolist() == [bool(k) for k in selected]


def test_shares_that_are_no_floats():
    """.3 of 10 rows is 3 rows, although .3 · 10 > 3 in floats."""
    assert best_of_group(torch.arange(10.0), torch.zeros(10), 0.3).sum() == 3
    assert best_of_group(torch.arange(10.0), torch.zeros(10), 0.1 + 0.2).sum() == 3


@pytest.fixture
def batch(text):
    return text.replies_to([0, 0, 0, 1, 1, 1], [2, 4, 3, 1, 2, 5], score=torch.tensor([1.0, 3, 2, 0, 0.5, 0.4]))


def rejection(text, **knobs):
    return RejectionSamplingPolicy(policy=text.gru_policy(), divergence="nll", **knobs)


def test_what_is_kept_is_the_experts(text, batch):
    module = rejection(text, top=0.3)
    prepared = module.prepare(batch)
    rows = [1, 4]
    assert prepared.expert_mask.any(1).nonzero()[:, 0].tolist() == rows
    assert torch.equal(prepared.expert_mask[rows], batch.mask[rows])
    assert torch.equal(prepared.expert_actions, batch.actions) and not prepared.mask.any()
    now = module.evaluate(prepared)
    expected = -now.log_probs[rows][batch.mask[rows]].mean()
    torch.testing.assert_close(module.losses(prepared, now)["imitation"], expected)
    assert torch.stack(module._unlogged["kept"]).tolist() == pytest.approx([2 / 6])


def test_only_successes(text, batch):
    """The best row of the second group is not a success."""
    selected = rejection(text, top=0.3, above=0.5).prepare(batch).expert_mask.any(1)
    assert selected.tolist() == [False, True, False, False, False, False]


def test_without_scores_it_goes_by_the_return(text, batch):
    """The sum over valid steps: row 0 has 2 steps of 3, row 1 has 4 of 1, and one of 99 that is padding."""
    rewards = torch.where(batch.valid, torch.tensor([3.0, 1, 1, 1, 0, 0])[:, None], 99)
    selection = rejection(text, top=0.3).prepare(replace(batch, score=None, rewards=rewards)).expert_mask.any(1)
    assert selection.tolist() == [True, False, False, True, False, False]
    with pytest.raises(ValueError, match="neither `score` nor `rewards`"):
        rejection(text).prepare(replace(batch, score=None))


def test_without_groups_the_collection_is_one(text, batch):
    selection = rejection(text, top=0.3).prepare(replace(batch, group=None)).expert_mask.any(1)
    assert selection.tolist() == [False, True, True, False, False, False]


def test_expected_responses_stay(text, batch):
    """Row 3 is an expected response: always imitated, not a candidate, and its actions do not change."""
    theirs = torch.tensor([False] * 3 + [True] + [False] * 2)
    tokens = batch.actions + 1
    batch = replace(
        batch, mask=batch.mask & ~theirs[:, None], expert_mask=batch.mask & theirs[:, None], expert_actions=tokens
    )
    prepared = rejection(text, top=0.5).prepare(batch)
    assert prepared.expert_mask.any(1).tolist() == [False, True, True, True, True, False]
    for row, actions in ((3, tokens), (1, batch.actions)):
        steps = prepared.expert_mask[row]
        assert torch.equal(prepared.expert_actions[row][steps], actions[row][steps])


@pytest.mark.parametrize("knob", [{"top": 1.0}, {"above": 0.5}])
def test_every_knob_changes_the_loss(knob, text, batch):
    losses = [text.loss(rejection(text, **options), batch) for options in ({}, knob)]
    assert abs(float((losses[0] - losses[1]).detach())) > 1e-4


def test_padding_changes_nothing(text, batch):
    torch.testing.assert_close(text.loss(rejection(text), text.padded(batch)), text.loss(rejection(text), batch))


def test_accumulation_is_one_batch(text, batch):
    module = rejection(text, top=0.6)
    prepared = module.prepare(batch)
    parts = text.micro_batches(prepared, [[3, 4, 5], [0, 1, 2]])
    whole = text.gradient_of(module, [prepared])
    torch.testing.assert_close(text.gradient_of(module, parts), whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("top", [0.0, 1.1, float("nan")])
def test_a_share_is_a_share(top, text):
    with pytest.raises(ValueError, match="top: got"):
        rejection(text, top=top)


def test_the_online_loop_raises_the_return():
    """Expert iteration on dialogues of symbols: from chance to clearly better in 12 collections."""
    torch.manual_seed(0)
    data = TokenTaskDataModule(vocabulary=5, prompts=16, replies=8, minibatches=4)
    module = RejectionSamplingPolicy(
        policy=GRUPolicy(5, 16),
        divergence="nll",
        top=0.125,
        above=0.2,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.03),
    )
    returns = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            returns.append(data.statistics["return"])

    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=12,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[Watch()],
    )
    trainer.fit(module, data)
    assert sum(returns[-3:]) / 3 > returns[0] + 0.1
