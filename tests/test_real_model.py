"""Real instruct model in our decoder: the same scores as transformers, sensible answers, and effects of feedback."""

import pytest
import torch

pytest.importorskip("transformers")

import transformers
import yaml

from benchmarks import own_prompts
from benchmarks.side_by_side.source_questions import conversations
from data_modules.feedback.providers import LocalJudge, ScoreQuestion
from data_modules.judgements.parsing import parse
from data_modules.text import FolderTokenizer
from lightning_nlf.experts import PolicyTextExpert
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
    # the probabilities from generation equal those of a pass over the full row
    of_reply = logits[:, prompt.shape[1] - 1 : -1].log_softmax(-1).gather(-1, tokens[:, : lengths[0], None])[..., 0]
    torch.testing.assert_close(log_probs[:, : lengths[0]], of_reply, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_expected_responses_in_a_file_change_what_the_model_says(smollm2):
    """The journey of docs/from_a_file.md: after half of the yaml's training it names a source when asked for one."""
    figures = own_prompts.measured("sft", 0, smollm2, ["--trainer.max_epochs", "2"])
    assert figures["start"]["source"] < 0.3 and figures["policy"]["source"] > 0.7
    assert figures["disk"] < 1e9


@pytest.mark.slow
def test_reviews_of_its_replies_change_what_the_model_says(smollm2, monkeypatch):
    """The journey of docs/from_people.md: scores of some of its replies, and expected responses.

    With all reviews the share of replies that name foods rises from 0.14 to 0.86 (seed 0).
    """
    verb, name, flags = own_prompts.STEPS["reviews"]
    monkeypatch.setitem(own_prompts.STEPS, "reviews", (verb, name, (*flags, "--data.task.val_share", "0.6")))
    fast = ["--trainer.max_epochs", "2", "--model.lr", "0.001"]
    figures = own_prompts.measured("round, people's reviews", 0, smollm2, fast)
    assert figures["start"]["source"] < 0.2 and figures["policy"]["food"] > figures["start"]["food"] + 0.3


@pytest.mark.slow
def test_critiques_of_people_change_what_the_model_says(smollm2):
    """The journey of docs/from_critiques.md, step 5: the replies of a file, with people's expected responses.

    With twice as many, the share of replies that name a source rises from 0.08 to 0.83 (seed 0).
    """
    fast = ["--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "2", "--model.lr", "0.001"]
    figures = own_prompts.measured("ilf, people's critiques and responses", 0, smollm2, fast)
    assert figures["critiques"] == 32
    assert figures["start"]["source"] < 0.2 and figures["policy"]["source"] > 0.5


@pytest.mark.slow
def test_a_server_criticises_each_reply(smollm2):
    """Step 4 of the same page: the server of transformers with the same model."""
    few = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--data.prompts", "2"]
    few += ["--data.evaluation_prompts", "2", "--data.max_new", "24"]
    figures = own_prompts.measured("ilf, an endpoint's critiques, one step", 0, smollm2, few)
    assert figures["critiques"] == 2 and figures["feedback_calls"] >= 2


@pytest.mark.slow
def test_a_judge_on_this_machine_tells_the_expected_reply_and_pays(smollm2):
    """The journey of docs/from_a_judge.md: the same model is the judge, and is given the right answer (step 5).

    Nothing is random before PPO. The judge was right on all of 16 training conversations.
    """
    settings = yaml.safe_load(own_prompts.OVERLAYS["my/judge.yaml"])["data"]["init_args"]["reward"]["init_args"]
    question = ScoreQuestion(**settings["question"]["init_args"])
    policy = PolicyTextExpert(TransformerPolicy(weights=str(smollm2)))
    judge = LocalJudge(policy, FolderTokenizer(str(smollm2)), question)
    lines = conversations()[1][:12]
    replies = [[line["responses"][0] for line in lines], [line["expected"] for line in lines]]
    judgements = [
        parse({"prompt": line["prompt"], "responses": pair, "meta": {"facts": {"reference": line["expected"]}}})
        for line, *pair in zip(lines, *replies, strict=True)
    ]
    scored, account = judge.complete(judgements, lambda: None)
    assert account.counters["calls"] == 24
    assert sum(reply.of("score", 1) > reply.of("score", 0) for reply in scored) >= 10

    few = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--data.prompts", "2"]
    few += ["--data.evaluation_prompts", "2", "--data.max_new", "24"]
    assert own_prompts.measured("ppo, a judge", 0, smollm2, few)["feedback_calls"] == 8
