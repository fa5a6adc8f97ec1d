"""Held-out rows of a file: what is logged of them, however they are cut."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_nlf.objectives import (
    DPOPolicy,
    KTOPolicy,
    ORPOPolicy,
    RankedDPOPolicy,
    RaoKupperDPOPolicy,
    RWRPolicy,
    UnlikelihoodPolicy,
)

KINDS = {
    DPOPolicy: {},
    RankedDPOPolicy: {},
    RaoKupperDPOPolicy: {},
    ORPOPolicy: {},
    KTOPolicy: {"threshold": 0.5},
    UnlikelihoodPolicy: {"threshold": 0.5},
}


@pytest.fixture
def batch(text):
    """Three groups of unequal size, with a tie; both good and bad in each of the parts below."""
    return text.replies_to(
        [0, 0, 0, 1, 1, 2, 2],
        [2, 4, 1, 3, 3, 5, 2],
        rank=torch.tensor([0, 1, 1, 1, 0, 0, 1]),
        score=torch.tensor([1, 0, 0, 0, 1, 1, 0.0]),
    )


def validated(module, parts):
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer.validate(module, DataLoader(parts, batch_size=None), verbose=False)[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_is_what_training_says_of_the_rows(kind, text, batch):
    """In one batch or in two; and nothing counts as experience. KTO's baseline is of a batch, so it is given."""
    module = text.moved(kind(policy=text.gru_policy(), **KINDS[kind]))
    module.baseline = lambda batch: torch.tensor(0.3)
    whole = validated(module, [batch])
    parts = validated(module, [batch[torch.tensor([0, 1, 2])], batch[torch.tensor([3, 4, 5, 6])]])
    assert module.experience == 0
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    said = module.terms(prepared, now) | now.notes
    assert set(whole) == {f"val/{name}" for name in module.measured} and len(whole) >= 2
    for name in module.measured:
        assert whole[f"val/{name}"] == pytest.approx(float(said[name].detach()), abs=1e-5)
        assert parts[f"val/{name}"] == pytest.approx(whole[f"val/{name}"], abs=1e-5)


def test_expected_responses_are_compared_there_too(text, batch):
    theirs = torch.tensor([True] + [False] * 6)
    rows = replace(
        batch,
        mask=batch.mask & ~theirs[:, None],
        expert_mask=batch.mask & theirs[:, None],
        expert_actions=batch.actions,
        rank=torch.where(theirs, -1, batch.rank),
    )
    module = text.moved(DPOPolicy(policy=text.gru_policy(), expected_first=True))
    assert validated(module, [rows]) == pytest.approx(validated(module, [batch]), abs=1e-5)


def test_rollouts_are_measured_by_their_return(text, batch):
    paid = replace(batch, rewards=torch.ones(batch.mask.shape))
    assert validated(DPOPolicy(policy=text.gru_policy()), [paid]) == {"val/return": pytest.approx(20 / 7)}


def test_a_regression_on_rewards_is_evaluated_by_rewards(text, batch):
    with pytest.raises(ValueError, match="val_share"):
        validated(RWRPolicy(policy=text.gru_policy()), [batch])
