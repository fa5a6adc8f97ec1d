"""Micro-batches: the split of rows, equal gradients, and knobs that limit what a network reads at a time."""

from dataclasses import replace
from unittest import mock

import lightning as L
import pytest
import torch

from data_modules.offline import OfflineDataModule, save_batch
from lightning_nlf.batch import Batch
from lightning_nlf.maths.parts import parts_of, row_lengths
from lightning_nlf.networks import GRUPolicy, GRUReward, GRUValue
from lightning_nlf.objectives import (
    ActorCriticAgent,
    DPOPolicy,
    ImitationPolicy,
    RankedDPOPolicy,
    SDPOPolicy,
)
from lightning_nlf.rewards import BradleyTerryReward

VOCABULARY = 11
LENGTHS = torch.tensor([3, 9, 4, 8, 2])


def lists(parts):
    return [part.tolist() for part in parts]


def test_rows_are_cut_in_their_order():
    assert lists(parts_of(LENGTHS)) == [[0, 1, 2, 3, 4]]
    assert lists(parts_of(LENGTHS, rows=2)) == [[0, 1], [2, 3], [4]]
    assert lists(parts_of(LENGTHS, rows=5)) == [[0, 1, 2, 3, 4]]


def test_tokens_are_packed_by_length():
    """2, 3 and 4 tokens in three rows of 4; 8 and 9 in two rows of 9; a single row of 9 cannot be split."""
    assert lists(parts_of(LENGTHS, tokens=18)) == [[0, 2, 4], [1, 3]]
    assert lists(parts_of(LENGTHS, tokens=12)) == [[0, 2, 4], [3], [1]]
    assert lists(parts_of(LENGTHS, tokens=5)) == [[4], [0], [2], [3], [1]]
    assert lists(parts_of(LENGTHS, rows=2, tokens=18)) == [[0, 4], [2, 3], [1]]


def test_groups_stay_whole():
    group = torch.tensor([7, 5, 7, 5, 5])
    assert lists(parts_of(LENGTHS, rows=2, group=group)) == [[0, 2], [1, 3, 4]]
    assert lists(parts_of(LENGTHS, rows=5, group=group)) == [[0, 1, 2, 3, 4]]
    assert lists(parts_of(LENGTHS, tokens=16, group=group)) == [[0, 2], [1, 3, 4]]


def test_a_row_is_as_long_as_its_last_step():
    steps = torch.tensor([[False, True, False, True], [True, False, False, False], [False] * 4])
    assert row_lengths(steps).tolist() == [4, 1, 0]


# ---- in training


def rows() -> Batch:
    """Four prompts with two or three replies of 1 to 6 tokens, with ranks, rewards, a view and expert labels."""
    generator = torch.Generator().manual_seed(0)
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3, 3])
    length = torch.tensor([3, 6, 1, 2, 5, 4, 4, 1, 2, 6])
    steps = torch.arange(8)
    mask = (steps >= 2) & (steps < 2 + length[:, None])
    ids = torch.randint(1, VOCABULARY, (10, 9), generator=generator)
    last = torch.nn.functional.one_hot(1 + length, 8)
    batch = Batch(
        obs=ids[:, :-1],
        actions=ids[:, 1:],
        valid=mask,
        mask=mask,
        log_probs=-2 * torch.rand(10, 8, generator=generator),
        rewards=last * torch.randn(10, 1, generator=generator),
        final_obs=ids[:, -1],
        terminated=torch.arange(10) % 2 == 0,
        group=group,
    )
    view = replace(batch, obs=batch.obs.flip(0).roll(1, 1), group=None, rewards=None, terminated=None, final_obs=None)
    return replace(batch, view=replace(view, mask=torch.zeros_like(mask)))


RANK = torch.tensor([0, 1, 1, 1, 0, 0, 1, 2, 0, 1])
KINDS = {
    "imitation": (lambda **k: ImitationPolicy(divergence="nll", **k), {}),
    "ppo": (lambda **k: ActorCriticAgent(value=GRUValue(VOCABULARY, width=8), clip=0.2, **k), {}),
    "sdpo": (lambda **k: SDPOPolicy(**k), {}),
    "dpo": (lambda **k: DPOPolicy(beta=1.0, **k), {"rank": RANK}),
    "rankings": (lambda **k: RankedDPOPolicy(beta=1.0, **k), {"rank": RANK}),
    "reward": (lambda policy, **k: BradleyTerryReward(reward=GRUReward(VOCABULARY, width=8), **k), {"rank": RANK}),
}


def trained(kind, folder, accumulate=1, **knobs):
    """The module after three epochs of two steps, its logs, and the number of rows in each call of its network."""
    make, fields = KINDS[kind]
    batch = replace(rows(), **fields)
    if kind == "imitation":
        batch = replace(batch, expert_mask=batch.mask, expert_actions=batch.actions, mask=torch.zeros_like(batch.mask))
    save_batch(batch, folder / "rows.pt")
    torch.manual_seed(0)
    module = make(policy=GRUPolicy(VOCABULARY, width=8), optimizer=lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9))
    network = module.reward if kind == "reward" else module.policy
    name = "forward" if kind == "reward" else "features"
    sizes, read = [], getattr(network, name)

    def counted(obs, where=None):
        sizes.append(obs.shape)
        return read(obs, where)

    with mock.patch.object(network, name, counted):
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=3,
            accumulate_grad_batches=accumulate,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        trainer.fit(module, OfflineDataModule(str(folder / "rows.pt"), minibatches=2, **knobs))
    assert trainer.global_step == 6
    return module, {name: float(x) for name, x in trainer.callback_metrics.items()}, sizes


CUTS = [{"rows_per_batch": 1}, {"rows_per_batch": 2}, {"tokens_per_batch": 17}, {"rows_per_batch": 2, "accumulate": 2}]


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_does_not_depend_on_the_cut(kind, tmp_path):
    """Logged values do not change either. With accumulation, some steps are logged in other means."""
    whole, logged, _ = trained(kind, tmp_path)
    start = KINDS[kind][0](policy=GRUPolicy(VOCABULARY, width=8))
    expected = torch.cat([p.detach().flatten() for p in whole.parameters()])
    assert len(expected) == sum(p.numel() for p in start.parameters())
    for knobs in CUTS:
        module, run, _ = trained(kind, tmp_path, **knobs)
        after = torch.cat([p.detach().flatten() for p in module.parameters()])
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)
        if "accumulate" not in knobs:
            assert run == pytest.approx(logged, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_never_reads_more_rows_than_the_knob_says(kind, tmp_path):
    """Ranked groups have two or three rows and are not split; other rows are read one at a time."""
    sizes = trained(kind, tmp_path, rows_per_batch=1)[2]
    largest = 3 if kind in ("dpo", "rankings", "reward") else 1
    assert max(size[0] for size in sizes) == largest
    assert max(size[0] for size in trained(kind, tmp_path)[2]) > 3


def test_tokens_bound_the_places_that_a_network_reads(tmp_path):
    sizes = trained("imitation", tmp_path, tokens_per_batch=17)[2]
    assert max(rows * width for rows, width in sizes) <= 17
    assert max(rows for rows, _ in sizes) > 1


def test_the_knobs_are_at_least_one():
    with pytest.raises(ValueError, match="rows_per_batch"):
        OfflineDataModule("rows.pt", rows_per_batch=0)
    with pytest.raises(ValueError, match="tokens_per_batch"):
        OfflineDataModule("rows.pt", tokens_per_batch=0)
