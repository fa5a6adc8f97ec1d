"""Saved rows: loading inverts saving, errors in a file, and training on it with a Trainer."""

from collections.abc import Mapping
from dataclasses import fields, replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from data_modules.offline import OfflineDataModule, load_batch, save_batch
from lightning_nlf.batch import Batch
from lightning_nlf.networks import GaussianPolicy, MLPValue
from lightning_nlf.objectives import ActorCriticAgent, ImitationPolicy


def rows(lengths=(3, 1, 4, 2, 5, 2), **changes):
    """Rows with every kind of field; the first observation of a row is its number."""
    generator = torch.Generator().manual_seed(0)
    count, width = len(lengths), max(lengths)
    valid = torch.arange(width) < torch.tensor(lengths)[:, None]
    random = lambda *trailing: torch.randn(count, width, *trailing, generator=generator)  # noqa: E731
    obs = random(4)
    obs[..., 0] = torch.arange(count)[:, None]
    batch = Batch(
        obs=obs,
        actions=random(1),
        valid=valid,
        mask=valid,
        log_probs=random(),
        rewards=random(),
        final_obs=torch.randn(count, 4, generator=generator),
        terminated=torch.arange(count) % 2 == 0,
        expert_actions=random(1),
        expert_mask=valid,
        expert_params={"mean": random(1), "std": random(1).exp()},
        extra={"weight": torch.rand(count, generator=generator)},
    )
    return replace(batch, **changes)


def numbers(batch):
    return batch.obs[:, 0, 0].int().tolist()


def assert_same(left, right):
    for field in fields(Batch):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, Batch):
            assert_same(a, b)
        elif isinstance(a, Mapping):
            assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)
        else:
            assert a is b is None or torch.equal(a, b)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "rows.pt")


def attached(data, epoch=0, rank=0, world_size=1, accumulate=1):
    data.trainer = SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        current_epoch=epoch,
        accumulate_grad_batches=accumulate,
        lightning_module=SimpleNamespace(prepare=lambda batch: batch),
        # both ranks have the same counts here, so the sum is twice its own
        strategy=SimpleNamespace(reduce=lambda x, reduce_op: x * world_size, root_device=torch.device("cpu")),
    )
    data.setup("fit")
    return data


# ---- files


def test_what_is_saved_is_loaded(path):
    batch = rows(view=rows(lengths=(2, 2, 2, 1, 1, 3)))
    save_batch(replace(batch, totals={"mask": torch.tensor(9.0)}), path)
    assert_same(load_batch(path), batch)


def test_the_file_is_a_plain_dict_of_tensors(path):
    save_batch(rows(), path)
    file_content = torch.load(path, weights_only=True)
    assert type(file_content) is dict and isinstance(file_content["obs"], torch.Tensor)
    assert set(file_content["expert_params"]) == {"mean", "std"}
    assert "totals" not in file_content and "values" not in file_content


def test_a_few_rows_are_not_saved_with_all_the_others(path, tmp_path):
    """A slice shares the storage of the whole batch, which a plain torch.save would write."""
    many = rows(lengths=(5,) * 5000)
    save_batch(many, tmp_path / "many.pt")
    save_batch(many[:50], path)
    assert (tmp_path / "rows.pt").stat().st_size < (tmp_path / "many.pt").stat().st_size / 20


def test_gradients_are_not_saved(path):
    save_batch(rows(values=torch.zeros(6, 5, requires_grad=True)), path)
    assert not load_batch(path).values.requires_grad


class Code:
    def __reduce__(self):
        return (print, ("this should never be printed",))


def saved_as(path, change):
    save_batch(rows(), path)
    torch.save(change(torch.load(path, weights_only=True)), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file_content: file_content | {"extra": Code()}, "not a file of plain tensors"),
        (lambda file_content: [file_content["obs"]], "has a list instead of a dict"),
        (
            lambda file_content: file_content | {"reward": file_content["rewards"]},
            "unknown field reward; a batch has actions, advantages",
        ),
        (lambda file_content: file_content | {"totals": {}}, "unknown field totals"),
        (
            lambda file_content: {k: v for k, v in file_content.items() if k not in ("mask", "obs")},
            "obs, mask is missing",
        ),
        (
            lambda file_content: file_content | {"rewards": file_content["rewards"][:4]},
            "rewards has 4 rows, mask has 6",
        ),
        (
            lambda file_content: file_content | {"terminated": file_content["terminated"][:1]},
            "terminated has 1 rows, mask has 6",
        ),
        (lambda file_content: file_content | {"extra": {"k": torch.zeros(7)}}, "extra.k has 7 rows, mask has 6"),
        (
            lambda file_content: file_content | {"expert_params": {"mean": torch.zeros(2, 5, 1)}},
            "expert_params.mean has 2 rows",
        ),
        (lambda file_content: file_content | {"rewards": [1.0, 2.0]}, "rewards is a list, must be a tensor"),
        (
            lambda file_content: file_content | {"score": torch.tensor(1.0)},
            "score is a Tensor, must be a tensor with rows",
        ),
        (
            lambda file_content: file_content | {"view": {"obs": file_content["obs"]}},
            "view: actions, valid, mask is missing",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(path, change, message, capsys):
    saved_as(path, change)
    with pytest.raises(ValueError, match=message) as error:
        OfflineDataModule(path).setup("fit")
    assert path in str(error.value)
    assert "never" not in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="path: there is no file .*nowhere.pt"):
        OfflineDataModule(str(tmp_path / "nowhere.pt")).setup("fit")


@pytest.mark.parametrize("content", [b"", b"not a file of torch at all", b"PK\x03\x04 cut off"])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "rows.pt").write_bytes(content)
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        load_batch(tmp_path / "rows.pt")


# ---- minibatches


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order(path):
    save_batch(rows(), path)
    data = OfflineDataModule(path, minibatches=3)
    epochs = []
    for epoch in (0, 1, 0):
        batches = list(attached(data, epoch=epoch).train_dataloader())
        assert [len(batch) for batch in batches] == [2, 2, 2]
        epochs.append([number for batch in batches for number in numbers(batch)])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(6))
    assert epochs[0] != epochs[1] and epochs[0] == epochs[2]


def test_seeds_shuffle_differently(path):
    save_batch(rows(), path)
    orders = [
        tuple(
            tuple(numbers(batch)) for batch in attached(OfflineDataModule(path, seed=seed, minibatches=3)).iteration()
        )
        for seed in range(4)
    ]
    assert len(set(orders)) > 1


def test_padding_is_cut_to_the_minibatch(path):
    save_batch(rows(), path)
    for batch in attached(OfflineDataModule(path, minibatches=6)).iteration():
        assert batch.mask.shape[1] == int(batch.valid.sum())


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_rows_by_group(path, world_size):
    group = torch.tensor([7, 3, 7, 5, 3, 9])
    save_batch(rows(group=group), path)
    shares = []
    for rank in range(world_size):
        batches = list(attached(OfflineDataModule(path), rank=rank, world_size=world_size).iteration())
        assert len(batches) == 1
        shares.append(set(batches[0].group.tolist()))
        assert sorted(numbers(batches[0])) == [i for i, g in enumerate(group.tolist()) if g in shares[-1]]
    assert set.union(*shares) == {3, 5, 7, 9} and sum(map(len, shares)) == 4
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("rank", [0, 1])
def test_too_few_rows_are_refused_on_every_rank(path, rank):
    """5 rows for 2 ranks × 3 minibatches: rank 0 would have 3 of them and continue, and wait for rank 1 for ever."""
    save_batch(rows(lengths=(1, 2, 3, 4, 5)), path)
    data = attached(OfflineDataModule(path, minibatches=3), rank=rank, world_size=2)
    with pytest.raises(ValueError, match="got 5 rows, must be at least 6"):
        next(data.iteration())


def test_too_few_rows_for_the_micro_batches_are_refused(path):
    save_batch(rows(), path)
    with pytest.raises(ValueError, match="must be at least 8"):
        next(attached(OfflineDataModule(path, minibatches=2), accumulate=4).iteration())


# ---- with a Trainer


def fitted(module, data, epochs):
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return trainer


def test_cloning_from_a_file(path):
    """The forward KL to the file's Gaussians falls; there is no validation and no reward."""
    save_batch(rows(rewards=None, log_probs=None, terminated=None, final_obs=None), path)
    torch.manual_seed(0)
    module = ImitationPolicy(policy=GaussianPolicy(4, 1), optimizer=lambda p: torch.optim.Adam(p, lr=0.02))

    def loss():
        batch = load_batch(path)
        return float(module.losses(batch)["imitation"].detach())

    before = loss()
    data = OfflineDataModule(path, minibatches=2, passes=3)
    trainer = fitted(module, data, epochs=5)
    assert trainer.global_step == 5 * 3 * 2
    assert data.counters == {"iteration": 5}
    assert loss() < before / 2


def test_a_critics_advantages_are_prepared_every_epoch(path):
    """The module's experience grows by the file's 17 steps per epoch, and V learns the returns."""
    save_batch(rows(), path)
    torch.manual_seed(0)
    module = ActorCriticAgent(
        policy=GaussianPolicy(4, 1), value=MLPValue(4), optimizer=lambda p: torch.optim.Adam(p, lr=0.02), clip=0.2
    )
    prepared = []
    prepare = module.prepare
    module.prepare = lambda batch: prepared.append(prepare(batch)) or prepared[-1]
    fitted(module, OfflineDataModule(path, minibatches=2), epochs=3)
    assert module.experience == 3 * 17 and len(prepared) == 3
    assert not any(batch.advantages.requires_grad for batch in prepared)
    assert not torch.equal(prepared[0].values, prepared[2].values)  # of the networks at that time
