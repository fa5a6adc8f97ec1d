"""Facts of a case in questions to judges, from `meta.facts` of a feedback file."""

import json

import lightning as L
import pytest

from data_modules.feedback import read
from data_modules.feedback.__main__ import main
from data_modules.feedback.providers import (
    CritiqueQuestion,
    Example,
    ExpectedQuestion,
    ListwiseQuestion,
    ModelJudge,
    PreferenceQuestion,
    ScoreQuestion,
)
from data_modules.feedback.versus import versus
from data_modules.judgements.schema import Judgement, Message
from data_modules.text import PromptFile, TextDataModule, WordTokenizer
from data_modules.text.environment import Case
from lightning_nlf.callbacks import Exhibits
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import ReinforcePolicy

CHAT = (Message("system", "be brief"), Message("user", "capital of France?"))
KNOWN = {"facts": {"reference": "Paris"}}
JUDGED = Judgement(CHAT, ("Lyon", "Paris"), meta=KNOWN, where="file:3")


@pytest.mark.parametrize(
    "question",
    [
        ScoreQuestion(template="{reference}: {prompt} | {response}"),
        CritiqueQuestion(template="{reference}: {prompt} | {response}"),
        ExpectedQuestion(template="{reference}: {prompt} | {response}"),
        PreferenceQuestion(preamble="", comparison="{reference}: {prompt} | {response_1} {response_2}", votes=1),
        ListwiseQuestion(template="{reference}: {prompt} | {responses}"),
    ],
    ids=lambda question: type(question).__name__,
)
def test_every_question_has_places_for_facts(server, endpoint, prompt_of, question):
    server.answer = lambda body: server.chat("1")
    assert question.facts == ("reference",)
    ModelJudge(endpoint(), [question]).complete([JUDGED], lambda: None)
    assert all("Paris: system: be brief\n\nuser: capital of France? |" in prompt_of(body) for body in server.requests)
    before = len(server.requests)
    missing = r"\{reference\}, and 1 are missing:\n  file:3: meta.facts: has no fact 'reference'"
    with pytest.raises(ValueError, match=missing):
        without = Judgement(CHAT, ("Lyon", "Paris"), meta={"facts": {"other": 1}}, where="file:3")
        ModelJudge(endpoint(), [question]).complete([JUDGED, without], lambda: None)
    with pytest.raises(ValueError, match="file:3: meta.facts: must be an object"):
        ModelJudge(endpoint(), [question]).complete(
            [Judgement(CHAT, ("a", "b"), meta={"facts": "Paris"}, where="file:3")], lambda: None
        )
    assert 0 < before == len(server.requests)


def test_a_template_keeps_its_own_places_and_takes_names_alone():
    with pytest.raises(ValueError, match=r"template: placeholder \{response\} is missing"):
        ScoreQuestion(template="{prompt}")
    for place in ("reference.__class__", "reference[0]", "0", ""):
        with pytest.raises(ValueError, match=r"template: unknown placeholder \{"):
            ScoreQuestion(template=f"{{{place}}} {{prompt}} {{response}}")


def test_an_example_says_the_facts_that_a_comparison_shows():
    comparison = "{reference} {prompt} {response_1} {response_2} "
    comparison_question = PreferenceQuestion(
        comparison=comparison, examples=[Example("p", "a", "b", 1, {"reference": "r"})]
    )
    assert "r p a b 1" in comparison_question.filled(JUDGED, 0, 1)
    with pytest.raises(ValueError, match="examples: 1: has no fact 'reference'"):
        PreferenceQuestion(comparison=comparison, examples=[Example("p", "a", "b", 1)])


def test_facts_go_from_a_prompt_file_through_a_prediction_to_the_judge(tmp_path, monkeypatch, server, prompt_of):
    """The judge's question has the prompt as text and the fact at its place."""
    monkeypatch.chdir(tmp_path)
    server.answer = lambda body: server.chat("7")
    lines = [{"prompt": f"say {word}", "facts": {"reference": f"the {word}"}} for word in ("ant", "bee", "cow", "dog")]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = PromptFile("mine.jsonl", val_share=0.25, test_share=0.5)
    data = TextDataModule(task, tokenizer=WordTokenizer(), max_new=3, replies=8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", callbacks=[Exhibits()], default_root_dir=tmp_path, **quiet)
    trainer.predict(ReinforcePolicy(policy=GRUPolicy(80, 8)), data)
    replies = read("predictions/replies.jsonl")
    assert [line.meta["facts"] for line in replies] == [{"reference": f"the {line.prompt[4:]}"} for line in replies]
    score = {"template": "{reference} | {prompt} | {response}", "low": 0, "high": 10}
    questions = [{"class_path": "data_modules.feedback.providers.ScoreQuestion", "init_args": score}]
    where = {"url": server.url, "model": "judge", "cache": None}
    provider = {"endpoint": where, "questions": questions}
    config = {"class_path": "data_modules.feedback.providers.ModelJudge", "init_args": provider}
    (tmp_path / "judge.yaml").write_text(json.dumps(config))
    words = ["judge", "predictions/replies.jsonl", "--config", "judge.yaml", "--out"]
    assert main([*words, "judged.jsonl"]) == 0
    assert {line.score for line in read("judged.jsonl")} <= {(0.7,) * count for count in range(1, 9)}
    prompts = {prompt_of(body).rsplit(" | ", 1)[0] for body in server.requests}
    assert prompts == {f"{line.meta['facts']['reference']} | {line.prompt}" for line in replies}


def test_a_prediction_keeps_the_facts_that_json_can_hold():
    facts = {"text": "t", "pair": (1, 2), "thing": object(), "nothing": float("nan")}
    assert Case("id", "prompt", facts).plain_facts == {"text": "t", "pair": (1, 2)}


def test_a_pair_of_two_policies_keeps_the_facts():
    first, second = (Judgement("say", (word,), meta=KNOWN | {"run": word}) for word in ("ant", "bee"))
    (pair,) = versus([first], [second])
    assert pair.meta == {"finished": [True, True]} | KNOWN
