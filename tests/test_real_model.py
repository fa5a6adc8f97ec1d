"""Our decoder runs a model that people use: the same scores as transformers, and an answer that makes sense."""

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from benchmarks import own_prompts
from data_modules.text import FolderTokenizer
from lightning_nlf.language import generation
from lightning_nlf.networks import TransformerPolicy
from tests.real_model import smollm2 as smollm2

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.mark.slow
@torch.no_grad()
def test_scores_are_those_of_transformers_and_it_answers_in_its_chat_template(smollm2):
    policy = TransformerPolicy(weights=str(smollm2)).eval()
    tokenizer = FolderTokenizer(str(smollm2), pad="<|endoftext|>")
    prompt = torch.tensor([tokenizer.encode_prompt(QUESTION)])
    tokens, log_probs, lengths, _ = generation.reply(
        policy, prompt, torch.tensor([prompt.shape[1]]), stop=(tokenizer.eos,), max_new=16, deterministic=True
    )
    assert tokenizer.decode(tokens[0, : lengths[0] - 1].tolist()) == "The capital of France is Paris."
    assert int(tokens[0, lengths[0] - 1]) == tokenizer.eos

    row = torch.cat([prompt, tokens[:, : lengths[0]]], 1)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    logits = theirs(row).logits
    torch.testing.assert_close(policy.scores(policy.features(row)), logits, rtol=0, atol=1e-3)
    # the chances that the loop gave its tokens are those of the whole row
    of_reply = logits[:, prompt.shape[1] - 1 : -1].log_softmax(-1).gather(-1, tokens[:, : lengths[0], None])[..., 0]
    torch.testing.assert_close(log_probs[:, : lengths[0]], of_reply, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_expected_responses_in_a_file_change_what_the_model_says(smollm2):
    """The journey of docs/from_a_file.md: asked for a source, it names one after half of the training of the yaml."""
    figures = own_prompts.measured("sft", 0, smollm2, ["--trainer.max_epochs", "2"])
    assert figures["start"]["source"] < 0.3 and figures["policy"]["source"] > 0.7
    assert figures["disk"] < 1e9
