"""What a fit of a language model leaves for other tools, and what that of a controller does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.text import TokenTaskDataModule, WordTokenizer
from lightning_nlf.callbacks import HuggingFaceExport
from lightning_nlf.networks import TransformerPolicy
from lightning_nlf.networks.decoder import DecoderShape
from lightning_nlf.objectives import ReinforcePolicy

WORDS = "a b c d e f g h i"  # with three special tokens the 12 of the task


class Worded(TokenTaskDataModule):
    """The toy dialogue with a tokenizer, which it does not need."""

    def __init__(self) -> None:
        super().__init__(prompts=4, replies=2, evaluation_prompts=2)
        self.tokenizer = WordTokenizer().fit([WORDS])


@pytest.fixture
def trained(fit: Any) -> Any:
    """A module with a policy on our decoder, and how to fit it."""

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


def test_without_a_tokenizer_the_policy_alone(fit: Any, trained: Any) -> None:
    trained(TokenTaskDataModule(prompts=4, replies=2, evaluation_prompts=2))
    assert sorted(path.name for path in (fit.folder / "huggingface").iterdir()) == ["config.json", "model.safetensors"]


def test_a_controller_has_no_such_layout(fit: Any) -> None:
    fit.pendulum(1, [HuggingFaceExport()])
    assert not (fit.folder / "huggingface").exists()


def test_a_rehearsal_leaves_no_files(fit: Any, trained: Any) -> None:
    trained(Worded(), fast_dev_run=True)
    assert not fit.folder.exists()


def test_one_that_cannot_be_written_is_a_warning(fit: Any, trained: Any) -> None:
    fit.folder.mkdir()
    Path(fit.folder / "huggingface").write_text("a file in its place")
    with pytest.warns(UserWarning, match="the policy is not exported"):
        trained(Worded())
