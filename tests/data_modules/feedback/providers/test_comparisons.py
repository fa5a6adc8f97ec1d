"""Preferences and rankings from a model: both orders, soft labels worked by hand, votes, and missing answers."""

import asyncio
import re

import pytest

from data_modules.feedback.providers.answer import Unanswered
from data_modules.feedback.providers.client import Client, Stopped
from data_modules.feedback.providers.comparisons import Example, ListwiseQuestion, PreferenceQuestion
from data_modules.judgements.schema import Judgement

PAIR = Judgement("q", ("good", "bad"))
FORM = "{prompt}: 1 {response_1} 2 {response_2} ="


def put(question, endpoint, judgement):
    """Fields of the answer, and errors of the parts that were left out."""
    faults = []

    async def ask():
        async with Client(endpoint) as client:
            try:
                return await question.ask(client, judgement, faults.append)
            except Unanswered as error:
                faults.append(error)
                return {}

    return asyncio.run(ask()), faults


def in_order(prompt_of, body):
    """The two responses in their order in the question."""
    return re.search(r"1 (\w+) 2 (\w+) =$", prompt_of(body)).groups()


def test_the_label_is_averaged_over_both_orders(server, endpoint, prompt_of):
    """Good first: 1 has .6 and 2 has .2, softmax .75. Bad first: .5 and .3, so 2 has .375. The mean is .5625."""

    def answer(body):
        first = in_order(prompt_of, body)[0] == "good"
        p_one, p_two = (0.6, 0.2) if first else (0.5, 0.3)
        return server.chat("1", [{"1": p_one / 2, " 1": p_one / 2, "2": p_two, "The": 0.2}])

    server.answer = answer
    fields, faults = put(PreferenceQuestion(comparison=FORM), endpoint(), PAIR)
    assert fields == {"preference": pytest.approx(0.5625), "ranking": "A > B"} and not faults
    assert len(server.requests) == 2 and {body["max_tokens"] for body in server.requests} == {1}
    assert {body["top_logprobs"] for body in server.requests} == {20}


def test_a_judge_that_only_sees_the_place_says_nothing(server, endpoint):
    """The first position always gets .9: ½ (.9 + .1) = .5, a tie."""
    server.says(server.chat("1", [{"1": 0.9, "2": 0.1}]))
    fields, _ = put(PreferenceQuestion(), endpoint(), PAIR)
    assert fields == {"preference": pytest.approx(0.5), "ranking": "A = B"}


def test_a_label_that_is_not_among_the_likeliest_is_impossible(server, endpoint, prompt_of):
    """2 is missing if good comes first, and 1 if it comes second: the model is certain."""
    server.answer = lambda body: server.chat(
        "", [{"1" if in_order(prompt_of, body)[0] == "good" else "2": 0.6, "The": 0.4}]
    )
    fields, _ = put(PreferenceQuestion(comparison=FORM), endpoint(), PAIR)
    assert fields["preference"] == pytest.approx(1.0)


def test_votes_where_there_are_no_log_probs(server, endpoint, prompt_of):
    """With good first, 3 of 4 votes are 1; with bad first, 1 of 4: ½ (.75 + 1 − .25) = .75. If one of the latter is
    invalid in both tries, 1 of 3 remains: ½ (.75 + 2/3)."""
    unclear = []

    def answer(body):
        first_votes = (0, 1, 2) if in_order(prompt_of, body)[0] == "good" else (0,)
        seed = body["seed"] % 1_000_003
        if unclear and seed == 3 and first_votes == (0,):
            return server.chat("both")
        return server.chat("1" if seed in first_votes else "2.")

    server.answer = answer
    question = PreferenceQuestion(comparison=FORM, votes=4)
    assert put(question, endpoint(cache=None), PAIR)[0]["preference"] == pytest.approx(0.75)
    assert sorted(body["seed"] for body in server.requests) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {body["temperature"] for body in server.requests} == {1.0} and "logprobs" not in server.requests[0]
    unclear.append(True)
    assert put(question, endpoint(cache=None), PAIR)[0]["preference"] == pytest.approx((0.75 + 2 / 3) / 2)


def test_a_server_without_log_probs_is_the_users_to_know(server, endpoint):
    server.says(server.chat("1"))
    with pytest.raises(ValueError, match="set votes to sample answers instead"):
        put(PreferenceQuestion(), endpoint(), PAIR)


def test_half_a_comparison_is_none(server, endpoint, prompt_of):
    """One order has no answer; the other one alone would have position bias."""
    server.answer = lambda body: (
        server.chat("1", [{"1": 0.9, "2": 0.1}])
        if in_order(prompt_of, body)[0] == "good"
        else server.chat("I", [{"I": 1.0}])
    )
    fields, (fault,) = put(PreferenceQuestion(comparison=FORM), endpoint(), PAIR)
    assert fields == {} and "none of 1, 2 is among the most probable first tokens ['I']" in str(fault)
    assert len(server.requests) == 3  # the invalid answer was requested twice


def test_three_are_ranked_by_all_pairs(server, endpoint, prompt_of):
    """p(a > b) = .8, p(a > c) = .6, p(b > c) = .3: wins of a .7, of b (.2 + .3)/2 = .25, of c (.4 + .7)/2 = .55."""
    p = {("a", "b"): 0.8, ("a", "c"): 0.6, ("b", "c"): 0.3}

    def answer(body):
        first, second = in_order(prompt_of, body)
        p_one = p.get((first, second), 1 - p.get((second, first), 0))
        return server.chat("1", [{"1": p_one, "2": 1 - p_one}])

    server.answer = answer
    three = Judgement("q", ("a", "b", "c"))
    assert put(PreferenceQuestion(comparison=FORM), endpoint(), three)[0]["ranking"] == "A > C > B"
    assert len(server.requests) == 6
    tied = put(PreferenceQuestion(comparison=FORM, ties=0.2), endpoint(), three)[0]
    assert tied == {"ranking": "A = C > B", "preference": None} and len(server.requests) == 6


@pytest.mark.parametrize(
    "judgement",
    [Judgement("q", ("a",)), Judgement("q", expected="e"), Judgement("q", ("a", "b"), ranking="A > B", preference=0.9)],
)
def test_nothing_to_ask(server, endpoint, judgement):
    assert put(PreferenceQuestion(), endpoint(), judgement) == ({}, []) and not server.requests


def test_what_is_there_stays(server, endpoint):
    server.says(server.chat("1", [{"1": 0.9, "2": 0.1}]))
    fields, _ = put(PreferenceQuestion(), endpoint(), Judgement("q", ("a", "b"), ranking="B > A"))
    assert fields == {"preference": pytest.approx(0.5), "ranking": None}


def test_the_prompt_of_the_paper():
    """Preamble, example with its answer, the line that ends the examples, and the comparison."""
    question = PreferenceQuestion(
        preamble="A good summary is shorter.",
        comparison="Text - {prompt}\n\nSummary 1 - {response_1}\n\nSummary 2 - {response_2}\n\nPreferred Summary=",
        examples=[Example("We were best friends", "Broke up", "should I wish", 1)],
    )
    assert question.filled(Judgement("a text", ("long", "short ")), 1, 0) == (
        "A good summary is shorter.\n\n"
        "»»»» Example »»»»\n\n"
        "Text - We were best friends\n\nSummary 1 - Broke up\n\nSummary 2 - should I wish\n\nPreferred Summary=1\n\n"
        "»»»» Follow the instructions and the example(s) above »»»»\n\n"
        "Text - a text\n\nSummary 1 - short\n\nSummary 2 - long\n\nPreferred Summary="
    )


def test_a_principle_is_drawn_for_each_prompt(tmp_path):
    """The principle is the same in both orders and for the same seed; over many prompts each one is drawn."""
    path = tmp_path / "principles.yaml"
    path.write_text(
        "principles:\n"
        "  - {name: a, critique: x, revision: y, preference: 'Which is kinder?'}\n"
        "  - {name: b, critique: x, revision: y, preference: 'Which is truer?'}\n"
        "  - {name: c, critique: x, revision: y}\n"
    )
    preambles = [
        PreferenceQuestion(principles=str(path), seed=seed).filled(Judgement(f"q {i}", ("a", "b")), 0, 1).split("\n")[0]
        for seed in (0, 1)
        for i in range(30)
    ]
    assert set(preambles) == {"Which is kinder?", "Which is truer?"} and preambles[:30] != preambles[30:]
    question = PreferenceQuestion(principles=str(path))
    in_both_orders = [
        question.filled(Judgement("q 3", ("a", "b")), *order).split("\n")[0] for order in ((0, 1), (1, 0))
    ]
    assert in_both_orders == [preambles[3]] * 2


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"comparison": "{prompt} {response_1}"}, "comparison: placeholder {response_2} is missing"),
        ({"votes": -1}, "votes: got -1"),
        ({"votes": 2, "temperature": 0.0}, "temperature: got 0.0"),
        ({"alternatives": 1}, "alternatives: got 1"),
        ({"principles": "nowhere.yaml"}, "the file nowhere.yaml does not exist"),
    ],
)
def test_knobs_that_are_wrong(knobs, message):
    with pytest.raises(ValueError, match=message):
        PreferenceQuestion(**knobs)
    with pytest.raises(ValueError, match="preferred: got 3"):
        Example("q", "a", "b", 3)


# ---- listwise


def test_an_order_of_all_is_averaged_over_two_orders(server, endpoint, prompt_of):
    """In the given order: B > A = C, so a 1, b 0, c 1. Reversed (A is c, C is a): A > C > B, so a 1, b 2, c 0.

    The sums are 2, 2, 1: c is the best, and the others tie.
    """
    server.answer = lambda body: server.chat("B > A = C." if "A - ape" in prompt_of(body) else "A > C > B")
    fields, faults = put(ListwiseQuestion(), endpoint(), Judgement("q", ("ape", "bee", "cow")))
    assert fields == {"ranking": "C > A = B"} and not faults
    assert any("A - cow\n\nB - bee\n\nC - ape" in prompt_of(body) for body in server.requests)


def test_an_order_that_leaves_one_out_is_none(server, endpoint):
    server.says(server.chat("B > A"))
    fields, (fault,) = put(ListwiseQuestion(), endpoint(), Judgement("q", ("a", "b", "c")))
    assert fields == {} and "leaves out C" in str(fault)


def test_a_budget_that_runs_out_between_the_orders_judges_nothing(server, endpoint):
    server.says(server.chat("1", [{"1": 0.9, "2": 0.1}]))
    fields, (fault,) = put(PreferenceQuestion(), endpoint(max_calls=1), PAIR)
    assert fields == {} and isinstance(fault, Stopped)
    assert "preference" in put(PreferenceQuestion(), endpoint(), PAIR)[0] and len(server.requests) == 2
