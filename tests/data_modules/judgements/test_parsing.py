"""Errors in a feedback line: each has one message with the field and what to do."""

import pytest

from data_modules.judgements.parsing import Faults, parse
from data_modules.judgements.schema import Judgement, Message, Span, Step

ONE = {"prompt": "p", "responses": ["abcd"]}
TWO = {"prompt": "p", "responses": ["abcd", "ef"]}
FAULTS = [
    ([], "a line must be an object like .*, is empty list"),
    ("text", "a line must be an object like .*, is a text"),
    ({"responses": ["a"]}, "^prompt: is missing"),
    ({"prompt": None, "responses": ["a"]}, "^prompt: is missing"),
    ({"prompt": "p"}, "^responses: are missing, and so is expected; give at least one"),
    ({"prompt": "p", "score": 1}, "give at least one of the two; score: is about responses, and the line has none"),
    ({"prompt": "p", "expected": "e", "ranking": "A"}, "^ranking: is about responses, and the line has none"),
    ({"prompt": " ", "expected": "e"}, "^prompt: the text is empty"),
    ({"prompt": 3, "expected": "e"}, "^prompt: must be a text, is the number 3"),
    ({"prompt": [], "expected": "e"}, "^prompt: must be a text, is empty list"),
    ({"prompt": ["x"], "expected": "e"}, "^prompt: message 1 must be"),
    ({"prompt": [{"role": "usr", "content": "x"}], "expected": "e"}, "message 1: role 'usr' is none of system, "),
    ({"prompt": [{"role": "user", "content": ""}], "expected": "e"}, "message 1: content: the text is empty"),
    ({"prompt": [{"role": "user", "content": "x", "name": "y"}], "expected": "e"}, "with no other field"),
    (ONE | {"response": "x"}, "^response: unknown field; did you mean responses?"),
    (ONE | {"zzz": "x"}, "^zzz: unknown field; known fields: prompt, responses, score"),
    (ONE | {"where": "x"}, "^where: unknown field"),
    ({"prompt": "p", "responses": "abc"}, "^responses: must be a list like .* is a text"),
    ({"prompt": "p", "responses": []}, "^responses: must be a list like .* is empty list"),
    ({"prompt": "p", "responses": ["a", ""]}, "^responses: response B: the text is empty"),
    ({"prompt": "p", "responses": [None]}, "^responses: must be a text, is null"),
    ({"prompt": "p", "responses": ["\ud800"]}, "^responses: the text has half of a surrogate pair"),
    (ONE | {"score": 1.5}, "^score: 1.5 is outside the scale 0 to 1; correct it, or set another scale"),
    (ONE | {"score": "1"}, "^score: must be a number, is a text"),
    (ONE | {"score": True}, "^score: must be a number, is true or false"),
    (ONE | {"score": float("nan")}, "^score: nan is not finite"),
    (ONE | {"score": 10**400}, "^score: the number is not finite, or too large"),
    (ONE | {"score": [0.5, 0.5]}, "^score: is a list of 2 for 1 responses"),
    (ONE | {"score": [None]}, "^score: has only null; leave the field out"),
    (TWO | {"score": 0.5}, "^score: is a single value for 2 responses; give a list"),
    (TWO | {"score": [0.5, 2]}, "^score: response B: 2 is outside the scale"),
    (TWO | {"critique": "bad"}, "^critique: is a single value for 2 responses; give a list"),
    (TWO | {"critique": ["bad", ""]}, "^critique: response B: the text is empty"),
    (TWO | {"ranking": "A > C"}, "^ranking: 'A > C' names 'C', but the responses are A to B"),
    (TWO | {"ranking": "A > A"}, "^ranking: 'A > A' names A twice"),
    (TWO | {"ranking": "A"}, "^ranking: 'A' leaves out B"),
    (TWO | {"ranking": ["A", "B"]}, "^ranking: must be a text, is a list"),
    (TWO | {"preference": 1.5}, "^preference: 1.5 must be from 0 to 1; it is the probability that A is better than B"),
    (TWO | {"preference": -0.1}, "^preference: -0.1 must be from 0 to 1"),
    (TWO | {"preference": "A"}, "^preference: must be a number, is a text"),
    (ONE | {"preference": 0.5}, "^preference: compares two responses, A and B, and the line has 1; give a ranking"),
    ({"prompt": "p", "expected": "e", "preference": 0.5}, "^preference: is about responses, and the line has none"),
    (ONE | {"expected": ""}, "^expected: the text is empty"),
    (ONE | {"source": 7}, "^source: must be a text, is the number 7"),
    (ONE | {"episode": {}}, "^episode: must be a text, is empty object"),
    (ONE | {"id": 7}, "^id: must be a text"),
    (ONE | {"meta": "x"}, "^meta: must be an object, is a text"),
    (ONE | {"meta": {"x": float("inf")}}, "^meta: cannot be written as JSON"),
    (ONE | {"spans": [{"start": 2, "end": 5}]}, "^spans: 2 to 5 is not a range within the 4 characters"),
    (ONE | {"spans": [{"start": 2, "end": 2}]}, "^spans: 2 to 2 is not a range"),
    (ONE | {"spans": [{"start": -1, "end": 2}]}, "^spans: -1 to 2 is not a range"),
    (ONE | {"spans": [{"start": 0.5, "end": 2}]}, "^spans: 0.5 to 2 is not a range"),
    (ONE | {"spans": [{"start": 1}]}, '^spans: each must be {"start": …, "end": …}'),
    (ONE | {"spans": []}, "^spans: is a list of 0 for 1 responses|^spans: must be"),
    (TWO | {"spans": [{"start": 0, "end": 1}]}, "^spans: is a single value for 2 responses"),
    (TWO | {"spans": [None, [{"start": 0, "end": 3}]]}, "^spans: response B: 0 to 3 is not a range within the 2"),
    (ONE | {"steps": [{"end": 5, "label": 1}]}, "^steps: end 5 must be above 0, .* at most 4"),
    (ONE | {"steps": [{"end": 0, "label": 1}]}, "^steps: end 0 must be above 0"),
    (ONE | {"steps": [{"end": 3, "label": 1}, {"end": 3, "label": 1}]}, "^steps: end 3 must be above 3"),
    (ONE | {"steps": [{"end": 3, "label": "good"}]}, "^steps: must be a number, is a text"),
    (ONE | {"steps": [{"end": 3}]}, '^steps: each must be {"end": …, "label": …}'),
    (TWO | {"steps": [[], None]}, "^steps: response A: must be a list of at least one object, is empty list"),
]


@pytest.mark.parametrize(("record", "message"), FAULTS, ids=[message[:40] for _, message in FAULTS])
def test_what_is_wrong_is_said(record, message):
    with pytest.raises(Faults, match=message):
        parse(record, (0, 1))


def test_all_faults_of_a_line_are_said_at_once():
    with pytest.raises(Faults) as error:
        parse({"prompt": "", "responses": ["a"], "score": 2, "rank": "A"}, (0, 1))
    assert [fault.split(":")[0] for fault in error.value.faults] == ["rank", "prompt", "score"]


def test_a_bad_response_is_not_blamed_on_what_is_said_of_it():
    with pytest.raises(Faults) as error:
        parse({"prompt": "p", "responses": ["a", ""], "score": [0, 1], "ranking": "A > B"}, (0, 1))
    assert len(error.value.faults) == 1


def test_the_shortest_and_the_fullest_line():
    assert parse({"prompt": "p", "expected": "e"}) == Judgement("p", expected="e")
    full = parse(
        {
            "prompt": [{"role": "user", "content": "p"}],
            "responses": ["abcd", "ef"],
            "score": [0.5, None],
            "critique": [None, "no source"],
            "expected": "e",
            "ranking": "B>A",
            "preference": 0,
            "spans": [None, [{"start": 0, "end": 2}]],
            "steps": [[{"end": 2, "label": 1}, {"end": 4, "label": 0}], None],
            "source": "person 3",
            "episode": "run/7",
            "meta": {"seconds": 12},
            "id": "x",
        },
        (0, 1),
    )
    assert full == Judgement(
        prompt=(Message("user", "p"),),
        responses=("abcd", "ef"),
        score=(0.5, None),
        critique=(None, "no source"),
        expected="e",
        ranking="B > A",
        preference=0.0,
        spans=(None, (Span(0, 2),)),
        steps=((Step(2, 1.0), Step(4, 0.0)), None),
        source="person 3",
        episode="run/7",
        meta={"seconds": 12},
        id="x",
    )
    assert full.ranks == (1, 0)


def test_a_lone_response_needs_no_lists_and_null_is_missing():
    judgement = parse(ONE | {"score": 1, "critique": "good", "steps": [{"end": 4, "label": 1}], "expected": None})
    assert (judgement.score, judgement.critique, judgement.steps, judgement.expected) == (
        (1.0,),
        ("good",),
        ((Step(4, 1.0),),),
        None,
    )
    assert parse(ONE | {"score": [1], "critique": ["good"], "steps": [[{"end": 4, "label": 1}]]}) == judgement


def test_without_a_scale_any_number_is_a_score():
    assert parse(ONE | {"score": -7}).score == (-7.0,)
