"""Scores, critiques and expected responses from a model: valid and invalid answers."""

import asyncio
import math

import pytest

from data_modules.feedback.providers.answer import Answer, Malformed, NoLogProbs, Unanswered
from data_modules.feedback.providers.client import Client
from data_modules.feedback.providers.expectation import expected_label
from data_modules.feedback.providers.questions import AGAIN, CritiqueQuestion, ExpectedQuestion, ScoreQuestion, text_of
from data_modules.judgements.schema import Judgement, Message

TWO = Judgement("q", ("good ", "bad"))


def put(question, endpoint, judgement):
    """Fields of the answer, and errors of the parts that were left out."""
    faults = []

    async def ask():
        async with Client(endpoint) as client:
            try:
                return await question.ask(client, judgement, lambda error: faults.append(str(error)))
            except Unanswered as error:
                faults.append(str(error))
                return {}

    return asyncio.run(ask()), faults


def answer(*alternatives, text=""):
    """Answer with these probabilities of the most probable tokens."""
    return Answer(text, tuple({token: math.log(p) for token, p in step.items()} for step in alternatives))


# ---- scores


@pytest.mark.parametrize(
    ("text", "score"), [("8", 7 / 9), (" 1.\n", 0), ("10", 1), ("5.5", 0.5), ("0", None), ("11", None), ("8/10", None)]
)
def test_a_score_is_a_number_and_nothing_else(server, endpoint, text, score):
    """1 to 10 is mapped to 0 to 1: (x − 1) / 9."""
    server.says(server.chat(text))
    fields, faults = put(ScoreQuestion(), endpoint(), Judgement("q", ("r",)))
    assert (fields["score"] is None) == (score is None) == bool(faults)
    if score is not None:
        assert fields["score"] == pytest.approx((score,))


def test_a_scale_of_ones_own(server, endpoint, prompt_of):
    server.says(server.chat("2"))
    question = ScoreQuestion(low=0, high=4, scale=(-1.0, 1.0), template="{prompt} / {response} / {low}-{high}")
    assert put(question, endpoint(), Judgement(" q ", ("r ",)))[0] == {"score": (0.0,)}
    assert prompt_of(server.requests[0]) == "q / r / 0-4"


def test_an_answer_in_another_form_is_asked_for_once_more(server, endpoint, prompt_of):
    """The second answer about `good` is a number; both answers about `bad` are not, so it is left out with an error."""

    def answer(body):
        second = body["seed"] == AGAIN
        return server.chat("7" if second and "good" in prompt_of(body) else "about seven")

    server.answer = answer
    fields, faults = put(ScoreQuestion(), endpoint(), TWO)
    assert fields["score"] == (pytest.approx(6 / 9), None) and len(server.requests) == 4
    assert faults == ["score: 'about seven' is not a number from 1 to 10"]


def test_what_has_a_score_is_not_asked(server, endpoint):
    server.says(server.chat("10"))
    fields, _ = put(ScoreQuestion(), endpoint(), Judgement("q", ("a", "b"), score=(None, 0.25)))
    assert fields["score"] == (1.0, 0.25) and len(server.requests) == 1


def test_the_expected_score(server, endpoint):
    """.5 · 8 + .25 · 9 + .25 · 7 = 8, without the .2 of other words; (8 − 1) / 9."""
    server.says(server.chat("8", [{"8": 0.4, " 9": 0.1, "9": 0.1, "7": 0.2, "good": 0.2}]))
    fields, _ = put(ScoreQuestion(expectation=True), endpoint(), Judgement("q", ("r",)))
    assert fields["score"] == pytest.approx((7 / 9,))
    assert server.requests[0]["top_logprobs"] == 20 and server.requests[0]["max_tokens"] == 2


def test_ten_in_one_token_or_in_two():
    """As one token: .5 · 10 + .5 · 8 = 9. As two tokens, if the answer is 10: the 1 has .5, followed by 0 with .8, so
    .4 · 10 + .1 · 1 + .5 · 8 = 8.1.

    If the answer is another number, the continuation of the 1 is unknown and it counts as 1: .5 · 1 + .5 · 8 = 4.5.
    """
    labels = range(1, 11)
    assert expected_label(answer({"10": 0.5, "8": 0.5}), labels) == pytest.approx(9)
    two_tokens = answer({"1": 0.5, "8": 0.5}, {"0": 0.8, "\n": 0.2}, text="10")
    assert expected_label(two_tokens, labels) == pytest.approx(8.1)
    assert expected_label(answer({"1": 0.5, "8": 0.5}, {"\n": 1.0}, text="8"), labels) == pytest.approx(4.5)
    either = answer({"1": 0.25, "10": 0.25, "8": 0.5}, {"0": 0.5, ".": 0.5}, text="1.")
    assert expected_label(either, labels) == pytest.approx(0.125 * 1 + 0.375 * 10 + 0.5 * 8)


def test_no_number_among_the_likeliest():
    with pytest.raises(Malformed, match="no number from 1 to 3"):
        expected_label(answer({"good": 0.9, "4": 0.1}), range(1, 4))
    with pytest.raises(NoLogProbs, match="no log-probabilities"):
        expected_label(Answer("3"), range(1, 4))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"low": 3, "high": 3}, "low, high"),
        ({"scale": (1, 0)}, "scale"),
        ({"template": "{prompt}"}, "template: placeholder {response} is missing"),
        ({"template": "{prompt} {respons}"}, "template: unknown placeholder {respons}"),
        ({"template": "{prompt} {response} {"}, "template: "),
    ],
)
def test_knobs_of_a_score_that_are_wrong(knobs, message):
    with pytest.raises(ValueError, match=message):
        ScoreQuestion(**knobs)


# ---- words


def test_critiques_in_words(server, endpoint, prompt_of):
    """The model answers NOTHING about the good response, so it has no critique."""
    server.answer = lambda body: server.chat("Nothing." if "good" in prompt_of(body) else " No source is named. \n")
    assert put(CritiqueQuestion(max_tokens=9), endpoint(), TWO) == ({"critique": (None, "No source is named.")}, [])
    assert server.requests[0]["max_tokens"] == 9


def test_an_empty_critique_is_none(server, endpoint):
    server.says(server.chat(" "))
    assert put(CritiqueQuestion(), endpoint(), TWO) == ({"critique": None}, ["the answer is empty"] * 2)


def test_the_expected_response(server, endpoint, prompt_of):
    server.says(server.chat("As per the USDA, …"))
    question = ExpectedQuestion("{prompt} not {response}")
    assert put(question, endpoint(), TWO)[0] == {"expected": "As per the USDA, …"}
    assert prompt_of(server.requests[0]) == "q not good"
    assert put(question, endpoint(), Judgement("q", expected="e")) == ({}, []) and len(server.requests) == 1


def test_a_chat_is_shown_with_its_speakers():
    chat = (Message("system", "be brief "), Message("user", "hello"))
    assert text_of(Judgement(chat, ("r",))) == "system: be brief\n\nuser: hello"


def test_braces_in_a_text_are_text(server, endpoint, prompt_of):
    server.says(server.chat("5"))
    put(ScoreQuestion(template="{prompt}|{response}"), endpoint(), Judgement("{x}", ("{response}",)))
    assert prompt_of(server.requests[0]) == "{x}|{response}"
