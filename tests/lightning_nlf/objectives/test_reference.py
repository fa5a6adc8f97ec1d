"""The reference: its log-probabilities, that each row is evaluated once, and its cache on disk."""

from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from data_modules.offline import OfflineDataModule, save_batch
from lightning_nlf.batch import Batch, stack_rows
from lightning_nlf.objectives import DPOPolicy, ReinforcePolicy, RLHFPolicy
from lightning_nlf.objectives.reference_cache import (
    TENSORS,
    LogProbCache,
    digest,
    read_rows,
    row_keys,
    settings,
    write_rows,
)


@pytest.fixture
def batch(text):
    return text.replies_to([0, 0, 1, 1], [2, 4, 3, 1], rank=torch.tensor([0, 1, 0, 1]))


def referring(text, seed=0, **knobs):
    """A module, and the batch sizes that its reference has evaluated."""
    module = DPOPolicy(policy=text.gru_policy(seed), **knobs)
    read = []
    module.reference.register_forward_hook(lambda network, inputs, output: read.append(len(inputs[0])))
    return module, read


def test_the_reference_is_the_policy_as_it_was_built(text, batch):
    module, _ = referring(text)
    expected = module.evaluate(batch).log_probs.detach()
    text.moved(module)
    torch.testing.assert_close(module.prepare(batch).ref_log_probs, expected)
    assert not torch.allclose(module.evaluate(batch).log_probs, expected)


def test_a_row_is_read_once(text, batch):
    """Nor in another order, wider, or as the expert's; and results are equal bit for bit."""
    module, read = referring(text)
    first = module.prepare(batch).ref_log_probs
    assert read == [4]
    assert torch.equal(module.prepare(batch).ref_log_probs, first)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(module.prepare(text.padded(batch[order])).ref_log_probs[:, : first.shape[1]], first[order])
    theirs = replace(batch, mask=torch.zeros_like(batch.mask), expert_mask=batch.mask, expert_actions=batch.actions)
    assert torch.equal(module.reference_log_probs(theirs, theirs.expert_mask), first)
    assert read == [4]


def test_only_new_rows_are_read(text, batch):
    module, read = referring(text)
    module.prepare(batch)
    rest = text.replies_to([2, 2], [3, 3], rank=torch.tensor([0, 1]))
    joined = stack_rows([batch, rest])
    fresh, _ = referring(text)
    torch.testing.assert_close(module.prepare(joined).ref_log_probs, fresh.prepare(joined).ref_log_probs)
    assert read == [4, 2]


def test_what_was_given_stays(text, batch):
    module, read = referring(text)
    reference_log_probs = torch.randn(batch.mask.shape)
    assert (
        module.prepare(replace(batch, ref_log_probs=reference_log_probs)).ref_log_probs is reference_log_probs
        and not read
    )


@pytest.mark.parametrize("part", ["obs", "actions", "mask"])
def test_another_row_is_another_key(part, batch):
    setting = "32-true"
    keys = row_keys(batch, batch.mask, setting)
    assert len(set(keys)) == 4
    column = int(batch.mask[1].nonzero()[-1])
    changed = getattr(batch, part).clone()
    changed[1, column] = ~changed[1, column] if part == "mask" else changed[1, column] + 1
    altered = replace(batch, **{part: changed})
    assert [a == b for a, b in zip(row_keys(altered, altered.mask, setting), keys, strict=True)] == [
        True,
        False,
        True,
        True,
    ]
    assert not set(row_keys(batch, batch.mask, "bf16-mixed")) & set(keys)


def test_settings_show_what_weights_do_not():
    assert settings(nn.Dropout(0.1)) != settings(nn.Dropout(0.2))
    assert settings(nn.Linear(2, 2)) == settings(nn.Linear(2, 2).eval())


def test_digests_of_all_kinds_of_tensors():
    class Network(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.register_buffer("scale", torch.tensor(scale))
            self.halves = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))

    assert digest(Network(1.0)) == digest(Network(1.0)) != digest(Network(2.0))


# ---- on the disk


def test_another_run_reads_nothing(text, batch, tmp_path):
    """Another reference, or a slightly different number, is another key."""
    first, read = referring(text, reference_cache=str(tmp_path / "cache"))
    log_probs = first.prepare(batch).ref_log_probs
    assert read == [4]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{first._reference_digest}.safetensors"]
    second, read = referring(text, reference_cache=str(tmp_path / "cache"))
    assert torch.equal(second.prepare(batch).ref_log_probs, log_probs) and not read


def test_each_reference_has_its_own_file(text, batch, tmp_path):
    for seed in (0, 1):
        module, read = referring(text, seed, reference_cache=str(tmp_path))
        module.prepare(batch)
        assert read == [4]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_two_write_at_a_time_is_joined(text, batch, tmp_path):
    first, _ = referring(text, reference_cache=str(tmp_path))
    second, _ = referring(text, reference_cache=str(tmp_path))
    pairs = [batch[torch.tensor([0, 1])], batch[torch.tensor([2, 3])]]
    for module in (first, second):
        row = pairs[0][torch.tensor([0])]
        module.reference_log_probs(row, row.mask)  # both have read the file, or none was there
    first.prepare(pairs[0])
    second.prepare(pairs[1])
    third, read = referring(text, reference_cache=str(tmp_path))
    third.prepare(batch)
    assert not read


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def turned(path):
    """The file is complete, but one number has changed."""
    tensors, metadata = opened(path)
    tensors["log_probs"][0] += 1
    save_file(tensors, path, metadata)


def later(path):
    """A file of a later version."""
    tensors, metadata = opened(path)
    save_file(tensors, path, metadata | {"reference_cache": "2"})


def opened(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in TENSORS}, file.metadata()


def foreign(path):
    save_file({"weight": torch.ones(2)}, path)


def pickled(path):
    torch.save({"state_dict": {}}, path)


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, turned, later, foreign, pickled, emptied])
def test_a_damaged_file_is_ignored_with_a_warning(damage, text, batch, tmp_path):
    first, _ = referring(text, reference_cache=str(tmp_path))
    log_probs = first.prepare(batch).ref_log_probs
    damage(next(tmp_path.iterdir()))
    second, read = referring(text, reference_cache=str(tmp_path))
    with pytest.warns(UserWarning, match="reference_cache: .*ignored"):
        assert torch.equal(second.prepare(batch).ref_log_probs, log_probs)
    assert read == [4]
    third, read = referring(text, reference_cache=str(tmp_path))
    third.prepare(batch)
    assert not read


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.safetensors"
    write_rows({b"k" * 32: torch.ones(2)}, path)

    def full(part, content):
        with part.open("wb") as file:
            file.write(content[:9])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        write_rows({b"l" * 32: torch.ones(2)}, path)
    assert list(read_rows(path)) == [b"k" * 32] and [p.name for p in tmp_path.iterdir()] == ["rows.safetensors"]


def test_in_memory_what_was_not_asked_for_longest_is_forgotten():
    """Room for 5 numbers, three rows of 2: the first was used again, so the second is dropped."""
    cache = LogProbCache()
    cache.LIMIT = 5
    for name in (b"a", b"b", b"c"):
        cache[name] = torch.ones(2)
    assert len(cache[b"a"]) == 2
    cache.settle()
    assert [name in cache for name in (b"a", b"b", b"c")] == [True, False, True]


# ---- with a Trainer


def test_an_epoch_of_a_file_costs_no_reading(text, batch, tmp_path):
    save_batch(batch, tmp_path / "rows.pt")
    module, read = referring(text)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, OfflineDataModule(str(tmp_path / "rows.pt"), minibatches=2))
    assert trainer.global_step == 8 and read == [4]


# ---- the KL of what was said in an evaluation

POLICY, REFERENCE = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])


def strayed(text, kind=RLHFPolicy):
    """A policy over three tokens with the probabilities `POLICY`, which started as `REFERENCE`."""
    module = kind(policy=text.lookup_policy([REFERENCE.tolist()] * 3))
    with torch.no_grad():
        module.policy.scores.copy_(POLICY.log().expand(3, 3))
    return module


def replies(**extra):
    """Tokens 0 1 in the first row, 2 in the second, after a prompt; 9 in the log-probabilities is padding."""
    ids = torch.tensor([[1, 0, 1], [1, 2, 0]])
    valid = torch.tensor([[True, True], [True, False]])
    log_probs = torch.where(valid, POLICY.log()[ids[:, 1:]], 9)
    batch = Batch(ids[:, :-1], ids[:, 1:], valid, valid, log_probs=log_probs, rewards=torch.zeros(2, 2))
    return replace(batch, extra={name: torch.tensor(x) for name, x in extra.items()})


def validated(module, batch):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.validate(module, [DataLoader([batch], batch_size=None)] * 2, verbose=False)
    return trainer.callback_metrics


def test_samples_of_an_evaluation_say_how_far_the_policy_strayed(text):
    """ln(.7/.5) + ln(.2/.3) = .3364722 − .4054651 = −.0689929 and ln(.1/.2) = −.6931472, with mean −.3810700.

    Two parts of one episode have the sum −.7621401. Rows are not cached, and greedy replies have no KL.
    """
    module = strayed(text)
    metrics = validated(module, replies())
    assert metrics["val/kl_sampled"] == pytest.approx(-0.3810700, abs=1e-6)
    assert "val/kl" not in metrics and "val/return" in metrics and module._cache is None
    parts = validated(module, replies(episode=[0, 0], part=[0, 1]))
    assert parts["val/kl_sampled"] == pytest.approx(-0.7621401, abs=1e-6)


def test_there_is_no_kl_without_a_reference(text):
    metrics = validated(strayed(text, ReinforcePolicy), replies())
    assert "val/return_sampled" in metrics and "val/kl_sampled" not in metrics


def test_there_is_no_kl_from_another_reference_than_the_checkpoints(text):
    checkpoint = {}
    trained = strayed(text)
    trained.on_save_checkpoint(checkpoint)
    trained.on_load_checkpoint(checkpoint)
    assert "val/kl_sampled" in validated(trained, replies())
    altered = RLHFPolicy(policy=text.lookup_policy([POLICY.tolist()] * 3))
    altered.on_load_checkpoint(checkpoint)
    with pytest.warns(UserWarning, match="kl is not logged: the checkpoint was trained with another reference"):
        metrics = validated(altered, replies())
    assert "val/kl_sampled" not in metrics and "val/return_sampled" in metrics
