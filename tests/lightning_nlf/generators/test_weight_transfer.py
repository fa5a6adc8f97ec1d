"""Transfer of all weights, with stand-ins for vllm and for the server."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lightning_nlf.generators import GeneratorStopped, Served, WeightTransfer
from lightning_nlf.networks import DecoderShape, HuggingFacePolicy, LoRA, TransformerPolicy

SHAPE = DecoderShape(vocabulary=12, layers=1, heads=2, width=8, context=16, family="qwen2")


class Routes:
    """A server that records the routes that are called, with the bodies."""

    root, url, timeout = "http://host", "http://host/v1", 5.0

    def __init__(self, calls):
        self.calls, self.emptied = calls, True

    def get(self, path):
        return {"world_size": 2}

    def post(self, path, body=None):
        self.calls.append((path.removeprefix(self.root), body))
        return {"success": self.emptied} if "reset" in path else {}


@pytest.fixture
def calls(monkeypatch):
    """Calls of a stand-in for `vllm.distributed.weight_transfer`, in the order of the server's routes."""
    record = []

    class Engine(SimpleNamespace):
        def send_weights(self):
            weights = dict(self.source.iter_full())
            assert [(meta.name, meta.shape) for meta in self.source.metadata] == [
                (k, x.shape) for k, x in weights.items()
            ]
            record.append(("send", weights))

        def shutdown(self):
            record.append(("shutdown", None))

    def trainer_init(meeting, client, source):
        record.append(("init", (meeting, client)))
        return Engine(source=source)

    transfer, nccl = ModuleType("weight_transfer"), ModuleType("nccl_engine")
    transfer.ParamMeta = lambda name, dtype, shape: SimpleNamespace(name=name, dtype=dtype, shape=shape)
    transfer.WeightSource = type("WeightSource", (), {"iter_full": None})
    transfer.HTTPVLLMWeightSyncClient = lambda root, timeout: (root, timeout)
    transfer.WeightTransferTrainerFactory = SimpleNamespace(trainer_init=trainer_init)
    nccl.NCCLTrainerInitInfo = lambda address, port, size, rank: (address, port, size, rank)
    for name in ("vllm", "vllm.distributed"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer", transfer)
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.nccl_engine", nccl)
    return record


def test_an_update_pauses_sends_labels_empties_the_cache_and_resumes(calls):
    sync = WeightTransfer(Routes(calls), "m", "10.0.0.1", 9)
    policy = TransformerPolicy(SHAPE)
    first, second = sync.push(policy), sync.push(policy)
    assert first == Served("m", f"{sync.prefix}-1") and second == Served("m", f"{sync.prefix}-2")
    sync.close()
    assert calls[0] == ("init", (("10.0.0.1", 9, 3, 0), ("http://host", 5.0)))  # two workers and the trainer
    routes = ["/pause?mode=wait", "send", "/update_weight_version", "/reset_prefix_cache", "/resume"]
    assert [name for name, _ in calls[1:]] == [*routes, *routes, "shutdown"]
    assert calls[3] == ("/update_weight_version", {"new_version": first.version})


def test_a_cache_that_is_not_emptied_ends_the_run(calls):
    server = Routes(calls)
    server.emptied = False
    with pytest.raises(GeneratorStopped, match="prefix cache was not emptied"):
        WeightTransfer(server, "m").push(TransformerPolicy(SHAPE))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_are_sent_as_they_are_exported(calls, tmp_path, family, tied):
    policy = TransformerPolicy(DecoderShape(12, 1, 2, 8, 16, family=family, tied=tied))
    WeightTransfer(Routes(calls), "m").push(policy)
    (weights,) = [x for name, x in calls if name == "send"]
    policy.export(tmp_path)
    exported = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == exported.keys()
    assert all(torch.equal(x, exported[name]) and x.is_contiguous() for name, x in weights.items())


def test_a_model_of_transformers_has_the_same_names(calls, tmp_path):
    pytest.importorskip("transformers")
    TransformerPolicy(SHAPE).export(tmp_path)
    WeightTransfer(Routes(calls), "m").push(HuggingFacePolicy(weights=str(tmp_path)))
    (weights,) = [x for name, x in calls if name == "send"]
    exported = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(x, weights[name]) for name, x in exported.items())


def test_an_older_vllm_is_refused(calls, monkeypatch):
    monkeypatch.setattr(sys.modules["vllm.distributed.weight_transfer"], "WeightSource", object)
    with pytest.raises(ValueError, match="sync: transfer needs vllm 0.33 or later"):
        WeightTransfer(Routes(calls), "m").push(TransformerPolicy(SHAPE))


def test_without_vllm_there_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="sync: transfer needs vllm in the trainer's environment too"):
        WeightTransfer(Routes([]), "m").push(TransformerPolicy(SHAPE))
    TransformerPolicy(SHAPE).export(tmp_path)
    with pytest.raises(ValueError, match="without lora"):
        WeightTransfer(Routes([]), "m").push(TransformerPolicy(weights=str(tmp_path), lora=LoRA(r=1)))
