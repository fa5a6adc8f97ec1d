"""The Hugging Face export of a language model. A controller has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.text import TokenTaskDataModule, WordTokenizer
from lightning_nlf.callbacks import HuggingFaceExport
from lightning_nlf.language import generation
from lightning_nlf.language.hf_generation import write_ends
from lightning_nlf.networks import DecoderShape, HuggingFacePolicy, TransformerPolicy
from lightning_nlf.objectives import ReinforcePolicy

WORDS = "a b c d e f g h i"  # with three special tokens the 12 of the task


class Worded(TokenTaskDataModule):
    """The toy dialogue with a tokenizer, which it does not need."""

    def __init__(self) -> None:
        super().__init__(prompts=4, replies=2, evaluation_prompts=2)
        self.tokenizer = WordTokenizer().fit([WORDS])


@pytest.fixture
def trained(fit: Any) -> Any:
    """A function that fits a small policy and returns its module."""

    def run(data: TokenTaskDataModule, **options: Any) -> ReinforcePolicy:
        torch.manual_seed(0)
        shape = DecoderShape(vocabulary=12, layers=1, heads=2, width=16, context=32)
        module = ReinforcePolicy(policy=TransformerPolicy(shape), optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
        fit.trainer(1, [HuggingFaceExport()], **options).fit(module, data)
        return module

    return run


def test_transformers_read_the_trained_policy(fit: Any, trained: Any) -> None:
    transformers = pytest.importorskip("transformers")
    module, folder = trained(Worded()), fit.folder / "huggingface"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(12, (3, 7), generator=torch.Generator().manual_seed(0))
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(ids).logits.log_softmax(-1), module.policy(ids).logits.log_softmax(-1), atol=1e-4, rtol=0
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(WORDS)["input_ids"] == WordTokenizer().fit([WORDS]).encode(WORDS)


def test_the_export_starts_another_run(fit: Any, trained: Any) -> None:
    module = trained(Worded())
    again = TransformerPolicy(weights=str(fit.folder / "huggingface"))
    for name, x in module.policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], x), name


def test_all_of_it_is_logged(fit: Any, trained: Any) -> None:
    trained(Worded())
    names = {path.name for path in fit.logger.artifacts if path.parent == fit.folder / "huggingface"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


def test_without_a_tokenizer_the_policy_and_its_end_alone(fit: Any, trained: Any) -> None:
    trained(TokenTaskDataModule(prompts=4, replies=2, evaluation_prompts=2))
    files = sorted(path.name for path in (fit.folder / "huggingface").iterdir())
    assert files == ["config.json", "generation_config.json", "model.safetensors"]
    assert json.loads((fit.folder / "huggingface/generation_config.json").read_text()) == {"eos_token_id": 0}


class Stopped(Worded):
    """A data module with stop ids, like `stop` in a yaml."""

    stops = (1, 4, 5, 9)


@pytest.mark.parametrize("kind", ["ours", "transformers"])
@pytest.mark.parametrize("data", [Worded, Stopped])
@torch.no_grad()
def test_generate_of_transformers_stops_where_replies_stop_here(
    kind: str, data: type[Worded], fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the exported folder alone, greedy decoding gives the same ids, including the stop token."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 12}
    policy = (
        TransformerPolicy(DecoderShape(vocabulary=12, layers=1, heads=2, width=16, context=32, init_std=0.5))
        if kind == "ours"
        else loud(HuggingFacePolicy(config={"model_type": "gpt2"} | sizes))
    )
    module, folder = data(), fit.folder / "huggingface"
    stops = getattr(module, "stops", (module.tokenizer.eos,))
    trainer = fit.trainer(1, [])
    trainer.datamodule = module
    HuggingFaceExport().on_fit_end(trainer, ReinforcePolicy(policy=policy))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(2, 12).view(5, 2)
    tokens, _, ends, _ = generation.reply(
        policy.eval(), ids, torch.full((5,), 2), stop=stops, max_new=12, deterministic=True
    )
    for row, (prompt, end) in enumerate(zip(ids, ends.tolist(), strict=True)):
        output = theirs.generate(prompt[None], attention_mask=torch.ones(1, 2), do_sample=False, max_new_tokens=12)
        assert output[0, 2:].tolist() == tokens[row, :end].tolist()
    assert data is Worded or 1 < int(ends.float().mean()) < 12  # so that stops stopped some
    config, generated = (json.loads((folder / name).read_text()) for name in ("config.json", "generation_config.json"))
    assert config["eos_token_id"] == stops[0] and config["pad_token_id"] == module.tokenizer.pad
    assert generated["pad_token_id"] == module.tokenizer.pad


def loud(policy: HuggingFacePolicy) -> HuggingFacePolicy:
    """Enlarge the weights, because a nearly uniform model repeats one token."""
    for parameter in policy.parameters():
        parameter.data *= 25 if parameter.ndim == 2 else 1
    return policy


@pytest.mark.parametrize("network", [TransformerPolicy, HuggingFacePolicy])
def test_what_the_start_folder_says_of_generation_is_carried_over(network: Any, tmp_path: Path) -> None:
    """All settings are kept except the end tokens that the data gives. transformers refuses to save these together."""
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 12}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, eos_token_id=3)).save_pretrained(tmp_path / "start")
    start = {"temperature": 0.5, "do_sample": False, "bos_token_id": 2, "eos_token_id": [3, 7], "top_p": 0.9}
    (tmp_path / "start/generation_config.json").write_text(json.dumps(start))
    policy = network(weights=str(tmp_path / "start"))
    policy.export(tmp_path / "plain")
    assert json.loads((tmp_path / "plain/generation_config.json").read_text()) == start
    write_ends(tmp_path / "plain", (5, 6), 4)
    exported = json.loads((tmp_path / "plain/generation_config.json").read_text())
    assert exported == start | {"eos_token_id": [5, 6], "pad_token_id": 4}
    config = json.loads((tmp_path / "plain/config.json").read_text())
    assert [config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == [2, 5, 4]


def test_a_controller_has_no_such_layout(fit: Any) -> None:
    fit.pendulum(1, [HuggingFaceExport()])
    assert not (fit.folder / "huggingface").exists()


def test_a_rehearsal_leaves_no_files(fit: Any, trained: Any) -> None:
    trained(Worded(), fast_dev_run=True)
    assert not fit.folder.exists()


def test_an_export_that_cannot_be_written_gives_a_warning(fit: Any, trained: Any) -> None:
    fit.folder.mkdir()
    Path(fit.folder / "huggingface").write_text("a file in its place")
    with pytest.warns(UserWarning, match="the policy was not exported"):
        trained(Worded())
