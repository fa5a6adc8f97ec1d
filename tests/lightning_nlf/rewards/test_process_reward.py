"""Process rewards: read at the end of each step, trained on its label, and used as a probability."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from data_modules.offline import OfflineDataModule, save_batch
from data_modules.tasks.sums import ArithmeticSteps
from data_modules.text.rows import as_rows
from data_modules.text.tokenizer import WordTokenizer
from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import row_counts, stamp_totals
from lightning_nlf.networks import GRUReward
from lightning_nlf.objectives import ProcessReward, StepValueReward
from lightning_nlf.rewards.process_reward import step_correctness_loss, step_value_loss

FAMILY = [ProcessReward, StepValueReward]
END = 1  # the token that ends a step


def labelled_rows(count=8, seed=0):
    """Replies of two steps, each of two tokens and an end token. A step is right if its tokens are equal."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, 4, (count, 2, 2), generator=generator)
    steps = torch.cat([tokens, torch.full((count, 2, 1), END)], 2)
    ids = torch.cat([torch.full((count, 1), 4), steps.flatten(1)], 1)
    valid = torch.ones(count, 6, dtype=torch.bool)
    ends = ids[:, 1:] == END
    right = (tokens[..., 0] == tokens[..., 1]).float()
    return Batch(
        obs=ids[:, :-1],
        actions=ids[:, 1:],
        valid=valid,
        mask=valid,
        rewards=torch.zeros(count, 6).masked_scatter(ends, right),
        final_obs=ids[:, -1],
        terminated=torch.ones(count, dtype=torch.bool),
        extra={"step_ends": ends},
    )


def built(family, **knobs):
    torch.manual_seed(0)
    return family(reward=GRUReward(5, width=16), **knobs)


def trainer(**knobs):
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return L.Trainer(accelerator="cpu", **quiet, **knobs)


def loss_of(module, prepared):
    return sum(module.losses(prepared).values())


def test_losses_by_hand():
    """σ(0) = ½: log 2 whatever the label. r = 1, y = .25: −.25 log σ(1) − .75 log σ(−1) = .0783154 + .9849463.

    Squares: (0 − 1)² and (1 − .25)².
    """
    rewards, labels = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.25]])
    torch.testing.assert_close(step_correctness_loss(rewards, labels), torch.tensor([[0.6931472, 1.0632617]]))
    torch.testing.assert_close(step_value_loss(rewards, labels), torch.tensor([[1.0, 0.5625]]))
    for loss in (step_correctness_loss, step_value_loss):
        with pytest.raises(ValueError, match="shapes: rewards"):
            loss(rewards, labels[:, :1])


@pytest.mark.parametrize(("family", "mean"), [(ProcessReward, (0.6931472 + 1.0632617) / 2), (StepValueReward, 0.78125)])
def test_the_mean_of_labelled_steps_by_hand(family, mean):
    """Rewards 0 and 1 at labels 1 and .25; the step outside, NaN, does not count.

    With four labelled steps in all, two of them elsewhere, the loss is half of that.
    """
    module, batch = built(family), labelled_rows(1)
    batch = replace(batch, rewards=torch.tensor([[0, 0, 1.0, 0, 0, 0.25]]))
    prepared = module.prepare(batch)
    now = replace(module.evaluate(prepared), values=torch.tensor([[torch.nan, 0, 0, 0, 0, 1.0]]))
    assert float(sum(module.losses(prepared, now).values())) == pytest.approx(mean, abs=1e-6)
    (part,) = stamp_totals([prepared], {"labelled": torch.tensor(4.0)}, 1)
    assert float(sum(module.losses(part, now).values())) == pytest.approx(mean / 2, abs=1e-6)


@pytest.mark.parametrize("family", FAMILY)
def test_a_step_is_read_behind_its_end_and_knows_nothing_of_what_follows(family):
    module, batch = built(family), labelled_rows()
    values = module.evaluate(module.prepare(batch)).values
    for end in (2, 5):  # the actions that end a step
        ids = torch.cat([batch.obs[:, :1], batch.actions[:, : end + 1]], 1)
        torch.testing.assert_close(values[:, end], module.reward(ids)[:, -1])
    assert not values[:, [0, 1, 3, 4]].any()


@pytest.mark.parametrize("family", FAMILY)
def test_the_loss_does_not_depend_on_how_rows_were_cut(family):
    """Rows with one labelled step and rows with two, in parts of five rows and three."""
    module, batch = built(family), labelled_rows()
    ends = batch.extra["step_ends"].clone()
    ends[:4, 5] = False
    batch = module.prepare(replace(batch, extra={"step_ends": ends}))
    totals = {name: count.sum() for name, count in row_counts(batch).items()}
    assert totals["labelled"] == 12
    parts = stamp_totals([batch[:5], batch[5:]], totals, 2)
    torch.testing.assert_close(sum(loss_of(module, part) for part in parts) / 2, loss_of(module, batch))


def test_labels_are_asked_for_and_checked():
    batch = labelled_rows()
    with pytest.raises(ValueError, match="step_ends"):
        built(ProcessReward).prepare(replace(batch, extra={}))
    with pytest.raises(ValueError, match="step_ends"):
        built(StepValueReward).prepare(replace(batch, rewards=None))
    with pytest.raises(ValueError, match="steps: labels are from 0 to 3.*StepValueReward"):
        built(ProcessReward).prepare(replace(batch, rewards=3 * batch.rewards))
    built(StepValueReward).prepare(replace(batch, rewards=3 * batch.rewards))


def test_a_probability_is_paid_and_a_value_as_it_is():
    batch = labelled_rows()
    ends = batch.extra["step_ends"]
    for family, pays in ((ProcessReward, torch.sigmoid), (StepValueReward, lambda x: x)):
        module = built(family)
        outputs = module.evaluate(module.prepare(batch)).values.detach()
        torch.testing.assert_close(module.judge(batch, ends), torch.where(ends, pays(outputs), 0))


@pytest.mark.parametrize("family", FAMILY)
def test_a_fit_learns_which_steps_are_right(family, tmp_path):
    save_batch(labelled_rows(64), tmp_path / "rows.pt")
    module = built(family, optimizer=lambda groups: torch.optim.Adam(groups, 0.02))
    trainer(max_epochs=1).fit(module, OfflineDataModule(str(tmp_path / "rows.pt"), minibatches=4, passes=15))
    unseen = labelled_rows(64, seed=1)
    metrics = trainer().validate(module, DataLoader([unseen], batch_size=None), verbose=False)[0]
    ends = unseen.extra["step_ends"]
    assert ((module.judge(unseen, ends) > 0.5)[ends] == (unseen.rewards > 0.5)[ends]).float().mean() > 0.95
    assert metrics["val/loss"] < 0.1
    if family is ProcessReward:
        assert metrics["val/accuracy"] > 0.95 and metrics["val/calibration_error"] < 0.1
        assert module.exhibits(tmp_path) == [tmp_path / "reliability.md"]


@pytest.mark.slow
def test_steps_of_sums_are_told_right_from_wrong(tmp_path):
    """Three numbers, a third of the steps wrong: always predicting "right" is right two times in three."""
    task = ArithmeticSteps(sums=3000, numbers=3, wrong=1 / 3, draws=2, largest=99)
    tokenizer = WordTokenizer().fit(task.corpus())
    end = tokenizer.encode(".")[0]

    def rows(split):
        cases, demonstrations = task.cases(split), task.demonstrations(split)
        replies = [[*tokenizer.encode(reply), tokenizer.eos] for _, reply in demonstrations]
        batch = as_rows([tokenizer.encode(prompt) for prompt, _ in demonstrations], replies)
        ends = batch.valid & (batch.actions == end)
        labels = [
            step["label"]
            for i, (_, reply) in enumerate(demonstrations)
            for step in task.steps(cases[i % len(cases)], reply)
        ]
        rewards = torch.zeros(ends.shape).masked_scatter(ends, torch.tensor(labels, dtype=torch.float32))
        return replace(batch, rewards=rewards, extra={"step_ends": ends})

    save_batch(rows("train"), tmp_path / "rows.pt")
    torch.manual_seed(0)
    module = ProcessReward(
        reward=GRUReward(tokenizer.size, width=64), optimizer=lambda groups: torch.optim.Adam(groups, 4e-3)
    )
    data = OfflineDataModule(str(tmp_path / "rows.pt"), minibatches=75, passes=1)
    trainer(max_epochs=8).fit(module, data)
    metrics = trainer().validate(module, DataLoader([rows("val")], batch_size=None), verbose=False)[0]
    assert metrics["val/accuracy"] > 0.85, metrics
