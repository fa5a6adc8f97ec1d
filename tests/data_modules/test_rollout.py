"""Optimizer steps from rows, label buffer, random numbers and counters, with rows that cost nothing."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_modules.groups import shuffled
from data_modules.label_buffer import LabelBuffer, labelled_steps
from data_modules.rollout import LabelledRollouts
from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import count_of


def rows_of(lengths, **fields):
    """Rows with the given numbers of steps, all of the learner; the observation is the row's number."""
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    obs = torch.arange(len(lengths))[:, None, None].expand(*valid.shape, 1).float()
    return replace(Batch(obs=obs, actions=obs, valid=valid, mask=valid), **fields)


def mean_of(batch, name):
    """The mean observation over a mask, scaled as a part of the mean over all micro-batches."""
    total = torch.where(getattr(batch, name), batch.obs[..., 0], 0).sum()
    return total / count_of(batch, name) if total else total


def labels(*numbers):
    """Rows of one labelled step each."""
    obs = torch.tensor(numbers, dtype=torch.float32)[:, None, None]
    everywhere = torch.ones(len(numbers), 1, dtype=torch.bool)
    return labelled_steps(
        Batch(obs=obs, actions=obs, valid=everywhere, mask=everywhere, expert_mask=everywhere, expert_actions=obs)
    )


class Invented(LabelledRollouts):
    """Random rows: obs are random numbers, each row costs its steps, and the first step of each is labelled."""

    def __init__(self, lengths=(3, 1, 4, 1, 5, 9, 2, 6), **knobs):
        super().__init__(**knobs)
        self.lengths = lengths

    def collect(self, actor, rng):
        batch = rows_of(self.lengths)
        first = torch.zeros_like(batch.mask).index_fill(1, torch.tensor([0]), True)
        numbers = torch.from_numpy(rng.random(batch.obs.shape)).float()
        batch = replace(batch, extra={"drawn": numbers, "torch": torch.rand(len(batch))})
        batch = replace(batch, expert_mask=first, expert_actions=batch.actions)
        self.count(env_steps=int(batch.valid.sum()), labels=len(batch))
        if self.label_buffer is not None:
            self.label_buffer.add(labelled_steps(batch))
        return batch


class Passive:
    """An actor whose `prepare` does nothing."""

    def prepare(self, batch):
        return batch


def attached(data, epoch=0, rank=0, accumulate=1):
    """The data module as in a Trainer with one process."""
    data.trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        world_size=1,
        global_rank=rank,
        current_epoch=epoch,
        accumulate_grad_batches=accumulate,
        lightning_module=Passive(),
    )
    return data


def numbers(batch):
    return batch.obs[:, 0, 0].int().tolist()


# ---- shuffled


def test_shuffled_parts_hold_every_row_once_and_are_nearly_equal():
    parts = shuffled(rows_of([1] * 11), 4, np.random.default_rng(0))
    assert sorted(len(part) for part in parts) == [2, 3, 3, 3]
    assert sorted(torch.cat(parts).tolist()) == list(range(11))


def test_shuffled_keeps_groups_together():
    """Seven groups of 1 to 7 rows, interleaved, in three parts: each has 2 or 3 groups."""
    group = torch.tensor([g for size in range(7) for g in range(size, 7)])
    batch = rows_of([1] * len(group), group=group * 10 - 30)
    parts = [batch.group[part].tolist() for part in shuffled(batch, 3, np.random.default_rng(1))]
    assert sorted(len(set(part)) for part in parts) == [2, 2, 3]
    assert sum((Counter(part) for part in parts), Counter()) == Counter(batch.group.tolist())
    assert not (set(parts[0]) & set(parts[1]) | set(parts[1]) & set(parts[2]) | set(parts[0]) & set(parts[2]))


def test_shuffled_follows_the_generator():
    batch = rows_of([1] * 20)
    first, again, second = (torch.cat(shuffled(batch, 4, np.random.default_rng(s))).tolist() for s in (0, 0, 1))
    assert first == again != second


@pytest.mark.parametrize(
    ("group", "message"),
    [(None, "a collection of 2 rows cannot be split into 3 parts"), (torch.tensor([5, 5]), "1 groups")],
)
def test_more_parts_than_groups_are_refused(group, message):
    with pytest.raises(ValueError, match=message):
        shuffled(rows_of([1, 1], group=group), 3, np.random.default_rng(0))


@pytest.mark.parametrize("knob", ["minibatches", "passes"])
def test_less_than_one_is_refused(knob):
    with pytest.raises(ValueError, match=f"{knob}: got 0"):
        Invented(**{knob: 0})


# ---- iterations


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_iteration_yields_what_its_loader_announces(accumulate):
    data = attached(Invented(minibatches=3, passes=2, label_buffer=LabelBuffer(5, 4)), accumulate=accumulate)
    assert data.updates == 3 * 2 + 5
    assert len(list(data.train_dataloader())) == len(data.train_dataloader()) == 11 * accumulate


def test_every_pass_sees_every_row_once_in_another_order():
    batches = list(attached(Invented(minibatches=4, passes=2)).iteration())
    passes = [[n for batch in batches[i : i + 4] for n in numbers(batch)] for i in (0, 4)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(8))
    assert passes[0] != passes[1]


def test_micro_batches_are_the_minibatch_of_the_same_seed():
    whole = [numbers(batch) for batch in attached(Invented(minibatches=2)).iteration()]
    parts = [numbers(batch) for batch in attached(Invented(minibatches=2), accumulate=2).iteration()]
    assert [sorted(parts[0] + parts[1]), sorted(parts[2] + parts[3])] == [sorted(rows) for rows in whole]


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_mean_over_tokens_does_not_depend_on_the_cut(accumulate):
    """Rows of 3, 1, 4, 1, 5, 9, 2, 6 = 31 steps of the row's number: 3·0 + 1·1 + 4·2 + 1·3 + 5·4 + 9·5 + 2·6 + 6·7
    = 131, mean 131/31; the 8 labels are on first steps: (0 + … + 7)/8 = 3.5."""
    batches = list(attached(Invented(), accumulate=accumulate).iteration())
    assert len(batches) == accumulate
    for mask, expected in (("mask", 131 / 31), ("expert_mask", 3.5)):
        means = [mean_of(batch, mask) for batch in batches]
        assert float(sum(means)) / accumulate == pytest.approx(expected, abs=1e-5)


# ---- label buffer


def test_a_drawn_row_is_one_that_was_added_and_none_comes_twice():
    buffer = LabelBuffer(updates=1, rows=4)
    buffer.add(labels(1, 2, 3))
    buffer.add(labels(4, 5, 6))
    for seed in range(20):
        rows = numbers(buffer.draw(rows_of([1]), np.random.default_rng(seed)))
        assert len(rows) == len(set(rows)) == 4
        assert set(rows) <= {1, 2, 3, 4, 5, 6}
    assert len(buffer.draw(rows_of([1]), np.random.default_rng(0)).mask) == 4


def test_with_few_labels_all_are_drawn():
    buffer = LabelBuffer(rows=4)
    buffer.add(labels(7, 8))
    assert sorted(numbers(buffer.draw(rows_of([1]), np.random.default_rng(0)))) == [7, 8]


def test_the_oldest_labels_are_forgotten():
    buffer = LabelBuffer(capacity=4)
    buffer.add(labels(1, 2, 3))
    buffer.add(labels(4, 5))
    buffer.add(labels())
    assert numbers(buffer.labels) == [2, 3, 4, 5]
    buffer.add(labels(6, 7, 8, 9, 10))
    assert numbers(buffer.labels) == [7, 8, 9, 10]


def test_labelled_rows_teach_by_their_label_alone():
    row = labels(3)
    assert row.expert_mask.all() and not row.mask.any() and not row.valid.any()


def test_before_there_is_a_label_nothing_is_learned():
    """A row of the collection is used instead, so that every rank has something to evaluate; its masks are False."""
    batch = attached(Invented()).collect(None, np.random.default_rng(0))
    drawn_batch = LabelBuffer().draw(batch, np.random.default_rng(0))
    assert len(drawn_batch) == 1
    assert not drawn_batch.valid.any() and not drawn_batch.mask.any() and not drawn_batch.expert_mask.any()
    assert batch.mask[0].any()  # the collection itself does not change


@pytest.mark.parametrize("numbers_of_labels", [[], [6], [6, 7, 8]])
def test_the_masks_of_a_collection_are_there_and_true_nowhere(numbers_of_labels):
    """A term that is a mean over one of these masks has no step in rows of labels, nor in rows that fill up."""
    like = rows_of([2, 3]).with_masks(steps=torch.ones(2, 3, dtype=torch.bool), rows=torch.ones(2, dtype=torch.bool))
    buffer = LabelBuffer(rows=3)
    like = replace(like, expert_mask=torch.zeros_like(like.mask), expert_actions=like.actions)
    buffer.add(labels(*numbers_of_labels))
    drawn_batch = buffer.draw(like, np.random.default_rng(0), least=2)
    assert len(drawn_batch) == max(2, len(numbers_of_labels))
    assert drawn_batch.masks["steps"].shape == drawn_batch.mask.shape and drawn_batch.masks["rows"].shape == (
        len(drawn_batch),
    )
    assert not drawn_batch.masks["steps"].any() and not drawn_batch.masks["rows"].any()


def test_labels_are_drawn_anew_for_every_update_and_stamped():
    data = attached(Invented(label_buffer=LabelBuffer(updates=6, rows=3)))
    batches = list(data.iteration())[1:]
    assert len({tuple(numbers(batch)) for batch in batches}) > 1
    assert all(batch.totals["expert_mask"] == 3 and batch.totals["mask"] == 0 for batch in batches)


def test_an_update_of_fewer_labels_than_micro_batches():
    """One label or none, with four micro-batches per optimizer step: some are empty, and their mean is the label's."""
    for numbers_of_labels in ([6], []):
        data = attached(Invented(label_buffer=LabelBuffer(updates=1, rows=2)), accumulate=4)
        batch = rows_of([1] * 4, expert_mask=torch.zeros(4, 1, dtype=torch.bool))
        data.label_buffer.add(
            replace(labels(*numbers_of_labels), log_probs=None, values=None, returns=None, advantages=None)
        )
        parts = list(data.cut(batch, np.random.default_rng(0)))[4:]
        assert len(parts) == 4
        means = [mean_of(part, "expert_mask") for part in parts]
        assert float(sum(means)) / 4 == sum(numbers_of_labels)


@pytest.mark.parametrize("knob", ["updates", "rows", "capacity"])
def test_a_buffer_of_nothing_is_refused(knob):
    with pytest.raises(ValueError, match=f"label_buffer.{knob}: got 0"):
        LabelBuffer(**{knob: 0})


def test_labels_need_an_expert():
    with pytest.raises(ValueError, match="no labels"):
        labelled_steps(rows_of([1]))


# ---- random numbers


def drawn_at(epoch, seed=0, rank=0, before=()):
    data = attached(Invented(seed=seed, passes=1), rank=rank)
    for earlier in (*before, epoch):
        data.trainer.current_epoch = earlier
        batch = next(iter(data.train_dataloader()))
    order = numbers(batch)
    return order, batch.extra["drawn"].sum().item(), batch.extra["torch"].tolist()


def test_a_collection_depends_on_seed_epoch_and_rank_alone():
    """They do not depend on earlier collections, nor on other uses of torch's generator: resuming changes nothing."""
    reference = drawn_at(3, before=(0, 1, 2))
    torch.rand(7)
    assert drawn_at(3) == reference
    for changed in (drawn_at(2), drawn_at(3, seed=1), drawn_at(3, rank=1)):
        assert changed[1] != reference[1] and changed[2] != reference[2]


# ---- counters and checkpoint


def test_counters_add_up():
    data = attached(Invented())
    for _ in range(3):
        list(data.iteration())
    assert data.counters == {"iteration": 3, "env_steps": 93, "expert_steps": 0, "labels": 24}


def test_the_checkpoint_has_counters_and_labels():
    data = attached(Invented(label_buffer=LabelBuffer(2, 4)))
    list(data.iteration())
    resumed = attached(Invented(label_buffer=LabelBuffer(2, 4)))
    resumed.load_state_dict(data.state_dict())
    assert resumed.counters == data.counters
    assert numbers(resumed.label_buffer.labels) == numbers(data.label_buffer.labels) == list(range(8))
    resumed.count(env_steps=1)
    assert data.counters["env_steps"] == 31  # the checkpoint has a copy


def test_a_checkpoint_of_another_number_of_processes_is_refused():
    data = attached(Invented())
    state = data.state_dict()
    with pytest.raises(ValueError, match="the state of 2 processes, this run has 1"):
        data.load_state_dict(state | {"ranks": state["ranks"] * 2})
