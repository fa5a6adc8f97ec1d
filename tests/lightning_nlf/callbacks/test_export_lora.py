"""The export of a LoRA policy: the adapter, the merged folder, its dtype, and the iteration that is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_modules.text import TokenTaskDataModule
from lightning_nlf.callbacks import BestCheckpoint, HuggingFaceExport, LastCheckpoint
from lightning_nlf.networks import DecoderShape, HuggingFacePolicy, LoRA, TransformerPolicy
from lightning_nlf.objectives import ReinforcePolicy

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
AutoModel = transformers.AutoModelForCausalLM
FAMILIES = {
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "v_proj", "up_proj", "down_proj"],
    "qwen2": ["k_proj", "o_proj", "gate_proj"],
    "qwen3": None,
}


def start(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32) -> str:
    torch.manual_seed(0)
    shape = DecoderShape(vocabulary=12, layers=2, heads=2, width=16, context=32, family=family, init_std=0.3)
    TransformerPolicy(shape).export(folder, dtype)
    return str(folder)


def policy(kind: Any, weights: str, targets: list[str] | None = None) -> Any:
    network = kind(weights=weights, lora=LoRA(r=2, alpha=8, target_modules=targets)).eval()
    torch.manual_seed(1)
    for name, x in network.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(x, std=0.3)
    return network


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [TransformerPolicy, HuggingFacePolicy])
@torch.no_grad()
def test_peft_and_transformers_read_the_policy(kind: Any, family: str, tmp_path: Path) -> None:
    weights = start(tmp_path / "start", family)
    network, ids = policy(kind, weights, FAMILIES[family]), torch.randint(12, (3, 9))
    expected = network(ids).logits.log_softmax(-1)
    network.export(tmp_path / "merged")
    network.export_adapter(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == weights and config["task_type"] == "CAUSAL_LM"
    merged = AutoModel.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(ids).logits.log_softmax(-1), expected, atol=1e-4, rtol=0)
    base = AutoModel.from_pretrained(config["base_model_name_or_path"]).eval()
    assert not torch.allclose(base(ids).logits.log_softmax(-1), expected, atol=1e-2)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(ids).logits.log_softmax(-1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [TransformerPolicy, HuggingFacePolicy])
@pytest.mark.parametrize("lora", [None, LoRA(r=2)])
def test_a_folder_is_exported_as_it_came(kind: Any, lora: LoRA | None, tmp_path: Path) -> None:
    network = kind(weights=start(tmp_path / "start", dtype=torch.bfloat16), lora=lora)
    assert {x.dtype for x in network.parameters()} == {torch.float32}  # in which it trains
    network.export(tmp_path / "same")
    network.export(tmp_path / "wide", torch.float32)
    started = load_file(tmp_path / "start/model.safetensors")
    for folder, dtype in (("same", torch.bfloat16), ("wide", torch.float32)):
        tensors = load_file(tmp_path / folder / "model.safetensors")
        assert {x.dtype for x in tensors.values()} == {dtype}
        assert json.loads((tmp_path / folder / "config.json").read_text())["dtype"] == str(dtype).split(".")[1]
        for name, x in started.items():  # nothing is trained yet
            assert torch.equal(tensors[name].to(torch.bfloat16), x), name
    assert {x.dtype for x in network.parameters()} == {torch.float32}


class Raised(ReinforcePolicy):
    """A policy whose trainable weights equal the iteration's number from 1. The second validation is the best."""

    def on_train_epoch_end(self) -> None:
        with torch.no_grad():
            for x in self.policy.parameters():
                if x.requires_grad:
                    x.fill_(self.current_epoch + 1.0)
        super().on_train_epoch_end()

    def on_validation_epoch_end(self) -> None:
        self.log("val/quality", [0.5, 0.9, 0.7][self.current_epoch])


def fitted(fit: Any, network: Any, *callbacks: Any) -> Raised:
    torch.manual_seed(0)
    module = Raised(policy=network, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    data = TokenTaskDataModule(prompts=2, replies=2, evaluation_prompts=1)
    fit.trainer(3, [*callbacks, LastCheckpoint(), BestCheckpoint("val/quality", tie_break=None)]).fit(module, data)
    return module


def exported_addition(folder: Path) -> set[float]:
    return {float(y) for x in load_file(folder / "adapter_model.safetensors").values() for y in x.flatten()}


@pytest.mark.parametrize(("weights", "iteration"), [("best", 2.0), ("last", 3.0)])
@pytest.mark.parametrize("kind", [TransformerPolicy, HuggingFacePolicy])
def test_the_best_or_the_last_weights_are_exported_and_tagged(
    kind: Any, weights: Any, iteration: float, fit: Any, tmp_path: Path
) -> None:
    network = kind(weights=start(tmp_path / "start"), lora=LoRA(r=2))
    module = fitted(fit, network, HuggingFaceExport(weights=weights))
    assert exported_addition(fit.folder / "adapter") == {iteration}
    words = {"best": "best.ckpt (iteration 2, val/quality 0.9)", "last": "the last weights"}
    assert fit.logger.tags["export/weights"] == words[weights]
    trained = [x for x in module.policy.parameters() if x.requires_grad]
    assert all(bool((x == 3).all()) for x in trained)  # the module stays where training left it
    with torch.no_grad():
        for x in trained:
            x.fill_(iteration)
        ids = torch.randint(12, (2, 5))
        merged = AutoModel.from_pretrained(fit.folder / "huggingface").eval()
        ours = module.policy.eval()(ids).logits.log_softmax(-1)
        torch.testing.assert_close(merged(ids).logits.log_softmax(-1), ours, atol=1e-4, rtol=0)


def test_the_best_is_exported_without_lora_too(fit: Any, tmp_path: Path) -> None:
    fitted(fit, TransformerPolicy(weights=start(tmp_path / "start")), HuggingFaceExport())
    assert not (fit.folder / "adapter").exists()
    tensors = load_file(fit.folder / "huggingface/model.safetensors").values()
    assert {float(y) for x in tensors for y in x.flatten()} == {2.0}


def test_without_the_merged_folder_there_is_the_adapter_alone(fit: Any, tmp_path: Path) -> None:
    network = TransformerPolicy(weights=start(tmp_path / "start"), lora=LoRA(r=2))
    fitted(fit, network, HuggingFaceExport(merged=False))
    assert (fit.folder / "adapter").is_dir() and not (fit.folder / "huggingface").exists()
    assert {path.parent.name for path in fit.logger.artifacts} == {"adapter", "checkpoints"}


def test_an_adapter_of_an_unnamed_base_is_exported_merged(fit: Any) -> None:
    shape = DecoderShape(vocabulary=12, layers=1, heads=2, width=16, context=32)
    fitted(fit, TransformerPolicy(shape, lora=LoRA(r=2)), HuggingFaceExport(merged=False))
    assert (fit.folder / "huggingface").is_dir() and not (fit.folder / "adapter").exists()
