"""Preference reward models: one forward pass per reply, totals over parts, ties, normalisation, and learning."""

import math
from dataclasses import replace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from data_modules.offline import OfflineDataModule, save_batch
from lightning_nlf.batch import Batch
from lightning_nlf.callbacks import Exhibits
from lightning_nlf.maths.means import row_counts, stamp_totals
from lightning_nlf.maths.steps import last_valid
from lightning_nlf.networks import GRUReward
from lightning_nlf.objectives import BradleyTerryReward, DavidsonReward, PlackettLuceReward, RaoKupperReward

FAMILY = [BradleyTerryReward, RaoKupperReward, DavidsonReward, PlackettLuceReward]
VOCABULARY = 8


def ranked_rows(groups, replies=4, seed=0):
    """Prompts of two tokens, replies of one to four. The teacher counts the 2s in a reply; equal counts are a tie."""
    generator = torch.Generator().manual_seed(seed)
    count = groups * replies
    ids = torch.randint(1, VOCABULARY, (count, 6), generator=generator)
    lengths = torch.randint(1, 5, (count,), generator=generator)
    place = torch.arange(5)
    valid = (place >= 1) & (place < 1 + lengths[:, None])
    score = ((ids[:, 1:] == 2) & valid).sum(1).float()
    group = torch.arange(groups).repeat_interleave(replies)
    return Batch(
        obs=ids[:, :-1],
        actions=ids[:, 1:],
        valid=valid,
        mask=valid,
        final_obs=ids.gather(1, 1 + lengths[:, None])[:, 0],
        terminated=torch.ones(count, dtype=torch.bool),
        group=group,
        rank=((group[:, None] == group) & (score > score[:, None])).sum(1),
        score=score,
    )


def built(family, seed=0, **knobs):
    torch.manual_seed(seed)
    return family(reward=GRUReward(VOCABULARY, width=16), **knobs)


def trainer(**knobs):
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return L.Trainer(accelerator="cpu", **quiet, **knobs)


def loss_of(module, batch):
    return sum(module.losses(module.prepare(batch)).values())


def gradient(module, batches):
    """Gradient of the mean loss of the parts of a prepared batch, flat."""
    module.zero_grad()
    for batch in batches:
        (sum(module.losses(batch).values()) / len(batches)).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", FAMILY)
def test_one_forward_reads_each_reply_once_behind_its_last_token(family, monkeypatch):
    module, batch, read = built(family), ranked_rows(3), []
    inner = module.reward.forward

    def forward(obs, where=None):
        read.append((len(obs), int(where.sum())))
        return inner(obs, where)

    monkeypatch.setattr(module.reward, "forward", forward)
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    module.losses(prepared, now)
    assert read == [(12, 12)]  # 12 replies for 18 pairs
    assert torch.equal(now.where, last_valid(batch.valid))
    for row in range(len(batch)):  # alone, without padding: prompt and reply only
        length = int(batch.valid[row].nonzero().max()) + 1
        ids = torch.cat([batch.obs[row, :1], batch.actions[row, :length]])
        torch.testing.assert_close(now.values[row, length - 1], inner(ids[None])[0, -1])


@pytest.mark.parametrize("family", FAMILY)
def test_the_gradient_does_not_depend_on_how_groups_were_cut(family):
    """Groups of two to five rows, and thus different numbers of pairs, in one part or in three."""
    sizes = torch.tensor([2, 5, 3, 4, 2, 5])
    rows = replace(ranked_rows(21, replies=1), group=torch.arange(6).repeat_interleave(sizes))
    rows = replace(rows, rank=((rows.group[:, None] == rows.group) & (rows.score > rows.score[:, None])).sum(1))
    module = built(family)
    rows = module.prepare(rows)
    totals = {name: count.sum() for name, count in row_counts(rows).items()}
    parts = [rows[(rows.group == a) | (rows.group == b)] for a, b in ((0, 3), (1, 2), (4, 5))]
    whole, cut = gradient(module, [rows]), gradient(module, stamp_totals(parts, totals, 3))
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradient(module, stamp_totals([rows], totals, 1)), whole)
    assert not torch.allclose(gradient(module, parts), whole, atol=1e-6, rtol=1e-4)  # without totals


@pytest.mark.parametrize("family", FAMILY)
def test_unranked_rows_and_padding_change_nothing(family):
    module, batch = built(family), ranked_rows(4)
    aside = replace(ranked_rows(4, seed=5), rank=torch.full((16,), -1))
    joined = Batch(
        **{
            name: torch.cat([getattr(batch, name), getattr(aside, name)])
            for name in ("obs", "actions", "valid", "mask", "final_obs", "terminated", "group", "rank", "score")
        }
    )
    torch.testing.assert_close(loss_of(module, joined), loss_of(module, batch))
    padded = replace(batch, obs=torch.where(batch.valid | (torch.arange(5) == 0), batch.obs, 7))
    torch.testing.assert_close(loss_of(module, padded), loss_of(module, batch))


@pytest.mark.parametrize("family", FAMILY)
def test_a_batch_in_which_nothing_is_ranked_costs_nothing(family):
    module, batch = built(family), ranked_rows(2)
    loss = loss_of(module, replace(batch, rank=torch.full_like(batch.rank, -1)))
    loss.backward()
    assert loss == 0 and not any(p.grad.any() for p in module.parameters() if p.grad is not None)


def test_the_margin_asks_for_more_where_the_scores_are_further_apart():
    """Equal rewards: the loss of a pair is −log σ(−m) = log(1 + e^m) with m = .5 · (3 − 1) = 1, and log 2 without."""
    batch = ranked_rows(1, replies=2)[torch.tensor([0, 0])]
    batch = replace(batch, rank=torch.tensor([0, 1]), score=torch.tensor([3.0, 1.0]))
    for margin, expected in ((0.5, math.log1p(math.e)), (0.0, math.log(2))):
        torch.testing.assert_close(loss_of(built(BradleyTerryReward, margin=margin), batch), torch.tensor(expected))
    with pytest.raises(ValueError, match="margin"):
        built(BradleyTerryReward, margin=0.5).prepare(replace(batch, score=torch.tensor([3.0, math.nan])))


def test_rankings_are_asked_for():
    with pytest.raises(ValueError, match="`group` and `rank`"):
        built(BradleyTerryReward).prepare(replace(ranked_rows(1), rank=None))
    with pytest.raises(ValueError, match="`group` and `rank`"):
        built(BradleyTerryReward).prepare(replace(ranked_rows(1), group=None))


@pytest.mark.parametrize(("family", "knob", "none"), [(RaoKupperReward, "theta", 1.0), (DavidsonReward, "nu", 0.0)])
def test_a_tie_parameter_without_ties_is_refused(family, knob, none):
    with pytest.raises(ValueError, match=f"^{knob}: got {none}.*BradleyTerryReward"):
        built(family, **{knob: none})


@pytest.mark.parametrize(
    ("family", "knob", "expected"), [(RaoKupperReward, "theta", 1.25 / 0.75), (DavidsonReward, "nu", 1 / 3)]
)
def test_the_tie_parameter_is_learned_at_the_rate_of_ties_or_stays(family, knob, expected, tmp_path):
    """Equal rewards, a quarter of the pairs tied: θ = (1 + p)/(1 − p), ν = p/(1 − p), p = 1/4."""
    batch = ranked_rows(1, replies=1)[torch.zeros(8, dtype=torch.long)]
    batch = replace(batch, group=torch.arange(8) // 2, rank=torch.tensor([0, 0, 0, 1, 1, 0, 0, 1]))
    save_batch(batch, tmp_path / "rows.pt")
    for learn, reached in ((True, expected), (False, 3.0)):
        module = built(family, **{knob: 3.0}, learn_tie=learn, optimizer=lambda groups: torch.optim.SGD(groups, 4.0))
        trainer(max_epochs=1).fit(module, OfflineDataModule(str(tmp_path / "rows.pt"), passes=40))
        parameter = module.log_theta if family is RaoKupperReward else module.tie["raw"]
        torch.testing.assert_close(parameter.detach().exp(), torch.tensor(reached), atol=2e-3, rtol=0)


def fitted(family, folder, epochs=4, **knobs):
    """A fit with a Trainer on 96 rankings of four replies."""
    save_batch(ranked_rows(96), folder / "rows.pt")
    module = built(family, optimizer=lambda groups: torch.optim.Adam(groups, 0.02), **knobs)
    data = OfflineDataModule(str(folder / "rows.pt"), minibatches=8, passes=2)
    trainer(max_epochs=epochs).fit(module, data)
    return module


def measured(module, *batches):
    loader = DataLoader(list(batches), batch_size=None)
    return trainer().validate(module, loader, verbose=False)[0]


@pytest.mark.parametrize("family", FAMILY)
def test_a_fit_learns_to_order_replies_it_has_not_seen(family, tmp_path):
    module = fitted(family, tmp_path)
    unseen = ranked_rows(100, seed=1)
    after, before = measured(module, unseen), measured(built(family), unseen)
    assert after["val/accuracy"] >= 0.9 > 0.7 > before["val/accuracy"]
    assert after["val/loss"] < before["val/loss"]
    if "val/tie_likelihood" in after:
        assert after["val/tie_likelihood"] > before["val/tie_likelihood"]


def test_what_is_measured_by_hand():
    """Rewards 2, 1, 1, 0 for ranks 0, 1, 1, 2, then 0, 0 for ranks 0, 1: six pairs without a tie in two batches.

    Accuracy: five right and one even, 5.5/6. Differences 1, 1, 2, 1, 1, 0: the loss is (4 · .3132617 + .1269280 +
    .6931472)/6 = .3455203. Calibration, in both orders: σ(1) = .7310586 in one bin always happened, .8807971 in
    another; σ(0) = .5 happened once in two. So (8 · .2689414 + 2 · .1192029)/12 = .1991614.
    """
    module = built(BradleyTerryReward)
    values = {4: [2.0, 1.0, 1.0, 0.0], 2: [0.0, 0.0]}
    module.reward.forward = lambda obs, where: torch.tensor(values[len(obs)])
    first = replace(ranked_rows(1), rank=torch.tensor([0, 1, 1, 2]))
    second = replace(ranked_rows(1, replies=2), rank=torch.tensor([0, 1]))
    metrics = measured(module, first, second)
    losses = {"val/loss": 0.3455203, "val/bradley_terry": 0.3455203}
    expected = losses | {"val/accuracy": 5.5 / 6, "val/calibration_error": 0.1991614}
    assert metrics == pytest.approx(expected, abs=1e-6)
    predicted, happened, count = module.calibration.table.T
    torch.testing.assert_close(predicted, torch.tensor([0.1192029, 0.2689414, 0.5, 0.7310586, 0.8807971]))
    assert happened.tolist() == [0, 0, 0.5, 1, 1] and count.tolist() == [1, 4, 2, 4, 1]


def test_the_reliability_table_is_there_to_be_read(tmp_path):
    module = built(BradleyTerryReward)
    assert module.exhibits(tmp_path) == []
    measured(module, ranked_rows(20))
    (path,) = module.exhibits(tmp_path)
    assert path.name == "reliability.md" and len(path.read_text().splitlines()) > 2


def test_a_run_keeps_the_table_with_its_exhibits(tmp_path):
    rows = DataLoader([ranked_rows(8)], batch_size=None)
    fit = trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=[Exhibits()])
    fit.fit(built(BradleyTerryReward), rows, rows)
    assert (tmp_path / "exhibits" / "reliability.md").read_text().startswith("| predicted")


def scaled(module, batch):
    return module.judge(batch, last_valid(batch.valid)).sum(1)


def test_rewards_are_brought_to_mean_0_and_variance_1_and_stay_so(tmp_path):
    module, rows = fitted(BradleyTerryReward, tmp_path, epochs=1, normalize=384), ranked_rows(96)
    rewards = scaled(module, rows)
    torch.testing.assert_close(rewards.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(rewards.var(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert torch.equal(rewards.argsort(), module.read(rows, last_valid(rows.valid)).sum(1).argsort())
    fresh = built(BradleyTerryReward, seed=9)
    assert not torch.allclose(scaled(fresh, rows), rewards)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(scaled(fresh, rows), rewards)
    torch.testing.assert_close(measured(fresh, rows), measured(module, rows))


def test_a_sample_of_the_rows_normalizes_nearly_and_zero_not_at_all(tmp_path):
    rewards = scaled(fitted(BradleyTerryReward, tmp_path, epochs=1, normalize=128), ranked_rows(96))
    assert 0 < abs(rewards.mean()) < 0.3 and 0.7 < rewards.std() < 1.4
    module = fitted(BradleyTerryReward, tmp_path, epochs=1, normalize=0)
    assert module.gain == 1 and module.bias == 0
    with pytest.raises(ValueError, match="^normalize"):
        built(BradleyTerryReward, normalize=-1)


def test_the_scale_is_not_what_is_learned(tmp_path):
    """The loss uses differences of the unscaled rewards, for any gain."""
    module, batch = built(BradleyTerryReward), ranked_rows(4)
    before = loss_of(module, batch)
    module.gain.fill_(7.0)
    assert torch.equal(loss_of(module, batch), before)
