"""A reference that is read again from its folder equals a copy in memory, and its memory is free in between."""

import copy
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import DataLoader

from data_modules.offline import OfflineDataModule, save_batch
from lightning_nlf.networks import DecoderShape, GRUPolicy, HuggingFacePolicy, LoRA, TransformerPolicy
from lightning_nlf.objectives import DPOPolicy, RLHFPolicy
from lightning_nlf.objectives.reference_cache import digest

SHAPE = DecoderShape(vocabulary=11, layers=2, heads=2, width=16, context=32, family="llama", kv_heads=1)
UNTIED = replace(SHAPE, tied=False)
KINDS = [TransformerPolicy]
KINDS += [HuggingFacePolicy] if find_spec("transformers") else []


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=[SHAPE, UNTIED], ids=["tied", "untied"])
def folder(request, tmp_path):
    torch.manual_seed(0)
    network = TransformerPolicy(request.param)
    with torch.no_grad():
        for x in network.parameters():
            if x.ndim == 2:
                x *= 5  # a nearly uniform model would hide differences
    network.export(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def batch(text):
    return text.replies_to([0, 0, 1, 1], [2, 4, 3, 1], rank=torch.tensor([0, 1, 0, 1]))


def reading(kind, folder, objective=DPOPolicy, **knobs):
    return objective(policy=kind(weights=str(folder)), **knobs)


def keeping(kind, folder, objective=DPOPolicy, **knobs):
    """The same reference with a copy in memory: a policy of another seed, given the folder's weights manually."""
    policy = kind(weights=str(folder))
    start = kind(config=policy.config) if kind is HuggingFacePolicy else kind(policy.decoder.shape)
    start.load_state_dict(policy.state_dict())
    return objective(policy=start, **knobs)


def is_free(module):
    return all(x.untyped_storage().nbytes() == 0 for x in module.reference.parameters())


def sampled(batch):
    generator = torch.Generator().manual_seed(7)
    return replace(batch, log_probs=-torch.rand(batch.mask.shape, generator=generator), rewards=batch.mask.float())


def test_it_says_what_a_kept_copy_says_bit_for_bit_before_and_after_the_policy_moves(kind, folder, batch, text):
    module, keeper = reading(kind, folder), keeping(kind, folder)
    assert is_free(module) and not is_free(keeper)
    expected = keeper.prepare(batch).ref_log_probs
    assert torch.equal(module.prepare(batch).ref_log_probs, expected)
    for subject in (text.moved(module), keeper):
        subject._cache = None  # forces a new evaluation
    assert torch.equal(module.prepare(batch).ref_log_probs, expected)
    assert not torch.allclose(module.evaluate(batch).log_probs, expected)
    kl = keeper.episode_metrics(sampled(batch), True)["kl"]
    assert torch.equal(module.episode_metrics(sampled(batch), True)["kl"], kl) and kl.abs().min() > 0


def test_its_memory_is_free_when_it_has_been_read(kind, folder, batch):
    module, read = reading(kind, folder), []
    module.reference.register_forward_hook(
        lambda network, *_: read.append([StorageWeakRef(x.untyped_storage()) for x in network.parameters()])
    )
    module.prepare(batch)
    module.episode_metrics(sampled(batch), True)
    assert is_free(module) and len(read) == 2 and all(storage.expired() for subject in read for storage in subject)


def test_reading_draws_no_random_numbers(kind, folder, batch):
    module, state = reading(kind, folder), torch.get_rng_state()
    module.prepare(batch)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_digest_is_that_of_the_policy_as_it_was_built(kind, folder, batch, text):
    module = reading(kind, folder)
    expected = digest(module.policy)
    text.moved(module)
    assert module._reference_digest == expected == keeping(kind, folder)._reference_digest
    assert digest(module.policy) != expected and is_free(module)


def test_a_checkpoint_has_the_digest_where_the_folder_is_gone(kind, folder, batch):
    module, checkpoint = reading(kind, folder), {}
    module.prepare(batch)
    shutil.rmtree(folder)
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["reference_digest"] == digest(module.policy)


def test_where_rows_never_come_again_it_stays_in_memory(folder, batch, text):
    module = reading(TransformerPolicy, folder, RLHFPolicy)
    text.moved(module).prepare(sampled(batch))
    assert not is_free(module)
    shutil.rmtree(folder)
    module.prepare(sampled(batch))


# ---- who is copied as before


def given_other_weights(folder):
    policy = TransformerPolicy(weights=str(folder))
    with torch.no_grad():
        policy.decoder.embed.weight += 1
    return policy


def written_behind_autograd(folder):
    policy = TransformerPolicy(weights=str(folder))
    policy.decoder.embed.weight.data.mul_(2)
    return policy


def with_other_parameters(folder):
    policy = TransformerPolicy(weights=str(folder))
    policy.load_state_dict({name: x * 2 for name, x in policy.state_dict().items()}, assign=True)
    return policy


def with_a_part_more(folder):
    policy = TransformerPolicy(weights=str(folder))
    policy.extra = torch.nn.Linear(2, 2)
    return policy


def in_double(folder):
    return TransformerPolicy(weights=str(folder)).double()


def copied(folder):
    """A model that has been trained since."""
    return copy.deepcopy(given_other_weights(folder))


OTHERS = [given_other_weights, written_behind_autograd, with_other_parameters, with_a_part_more, in_double, copied]


@pytest.mark.parametrize("policy", OTHERS)
def test_a_policy_that_is_not_as_its_folder_has_it_is_copied(policy, folder):
    module = DPOPolicy(policy=policy(folder))
    assert not is_free(module) and module._reference_digest == digest(module.policy)


def test_lora_shares_its_memory_with_the_reference_as_before(folder, batch, text):
    module = reading(TransformerPolicy, folder)
    expected = module.prepare(batch).ref_log_probs
    adapted = text.moved(DPOPolicy(policy=TransformerPolicy(weights=str(folder), lora=LoRA(r=2)))).reference
    assert adapted._shared[0].base is not None and not list(adapted.parameters())
    low_rank = DPOPolicy(policy=TransformerPolicy(weights=str(folder), lora=LoRA(r=2)))
    torch.testing.assert_close(low_rank.prepare(batch).ref_log_probs, expected, atol=1e-5, rtol=0)


def test_a_module_can_be_built_without_numbers():
    with torch.device("meta"):
        module = DPOPolicy(policy=GRUPolicy(11, width=8))
    assert module._reference_digest == ""


def test_a_copy_of_the_module_reads_it_too(kind, folder, batch):
    module = reading(kind, folder)
    again = copy.deepcopy(module)
    assert torch.equal(again.prepare(batch).ref_log_probs, module.prepare(batch).ref_log_probs) and is_free(again)


# ---- a folder that does not stay


def replaced(folder):
    TransformerPolicy(replace(SHAPE, layers=1)).export(folder)


@pytest.mark.parametrize("change, state", [(replaced, "now holds other weights"), (shutil.rmtree, "no longer exists")])
def test_a_folder_that_changed_is_told(change, state, kind, folder, batch):
    module = reading(kind, folder)
    first = module.prepare(batch)
    change(folder)
    assert torch.equal(module.prepare(batch).ref_log_probs, first.ref_log_probs)  # cached rows
    with pytest.raises(ValueError, match=f"^reference: .*{folder}, which {state}; restore that model there$"):
        module.prepare(replace(batch, obs=batch.obs + 1))
    with pytest.warns(UserWarning, match=f"kl is not logged: .*{state}"):
        metrics = module.episode_metrics(sampled(batch), True)
    assert metrics["kl"].isnan().all()  # and training continues


def test_a_reading_that_failed_leaves_nothing_to_be_read(folder, batch, monkeypatch):
    module = reading(TransformerPolicy, folder)
    expected = reading(TransformerPolicy, folder).prepare(batch).ref_log_probs
    with monkeypatch.context() as patch:
        patch.setattr(TransformerPolicy, "read_again", lambda policy, folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            module.prepare(batch)
    assert is_free(module)
    assert torch.equal(module.prepare(batch).ref_log_probs, expected)


# ---- with a Trainer

QUIET = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
QUIET |= {"enable_progress_bar": False, "enable_model_summary": False}


@pytest.mark.parametrize("objective", [DPOPolicy, RLHFPolicy])
def test_a_validation_reads_it_between_collections(objective, kind, folder, batch):
    """A Trainer validates in inference mode, whose tensors cannot be used outside of it."""
    module, keeper = reading(kind, folder, objective), keeping(kind, folder, objective)
    for _ in range(2):
        kl = []
        for subject in (module, keeper):
            trainer = L.Trainer(**QUIET)
            trainer.validate(subject, [DataLoader([sampled(batch)], batch_size=None)] * 2, verbose=False)
            kl.append(trainer.callback_metrics["val/kl_sampled"])
        assert torch.equal(*kl)
        assert torch.equal(module.prepare(sampled(batch)).ref_log_probs, keeper.prepare(sampled(batch)).ref_log_probs)
        batch = replace(batch, obs=batch.obs.roll(1, 0))


def trained(module, path: Path, epochs, ckpt_path=None):
    trainer = L.Trainer(max_epochs=epochs, **QUIET)
    trainer.fit(module, OfflineDataModule(str(path / "rows.pt"), minibatches=2), ckpt_path=ckpt_path)
    trainer.save_checkpoint(path / "last.ckpt")
    return module


def test_a_run_that_is_resumed_trains_as_with_a_kept_copy(kind, folder, batch, tmp_path):
    save_batch(batch, tmp_path / "rows.pt")
    expected = trained(keeping(kind, folder), tmp_path, 4)
    first = trained(reading(kind, folder), tmp_path, 2)
    assert is_free(first)
    resumed = trained(reading(kind, folder), tmp_path, 4, tmp_path / "last.ckpt")
    assert is_free(resumed) and resumed.global_step == 8
    for name, x in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], x), name
    sample = sampled(batch)
    assert torch.equal(resumed.episode_metrics(sample, True)["kl"], expected.episode_metrics(sample, True)["kl"])
