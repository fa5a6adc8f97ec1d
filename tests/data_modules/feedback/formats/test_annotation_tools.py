"""Argilla and Label Studio: one judgement per annotator, with field roles inferred from names."""

import pytest

from data_modules.feedback.formats.labelstudio import character
from data_modules.feedback.formats.value import Value
from data_modules.judgements.schema import Judgement, Message, Span
from tests.data_modules.feedback.formats.examples import (
    ARGILLA,
    ARGILLA_1,
    ARGILLA_FLAT,
    LABELSTUDIO,
    LABELSTUDIO_PAIRWISE,
    LABELSTUDIO_RANKER,
    result,
)


def test_each_user_of_argilla_gives_a_judgement(convert):
    judgements, account = convert("argilla", ARGILLA)
    common_fields = {"prompt": "name a fiber", "responses": ("kale", "sand"), "meta": {"topic": "food"}}
    assert judgements == [
        Judgement(**common_fields, ranking="B > A", score=(5.0, None), source="ana", id="rec-7:1"),
        Judgement(
            **common_fields,
            score=(4.0, None),
            critique=(None, "no food"),
            expected="kale has 4 g",
            source="ben",
            id="rec-7:2",
        ),
    ]
    assert account == ["fields left out (in how many records): suggestions (1), status (1)"]


def test_rows_of_argilla_1_have_ranks_with_ties_and_only_what_was_submitted_counts(convert):
    judgements, account = convert("argilla", ARGILLA_1)
    ranked = Judgement("name a fiber", ("kale", "sand", "rock"), ranking="B > A = C", source="u1", id="x3")
    assert judgements == [ranked]
    assert account[0] == "1 answers left out because they were not submitted: first in record 1"


def test_flat_rows_of_argilla_2(convert):
    judgements, account = convert("argilla", ARGILLA_FLAT)
    assert judgements == [
        Judgement("name a fiber", ("sand",), score=(2.0,), critique=("no food",), source="ana", id="rec-8")
    ]
    assert account[0] == "1 answers left out because they were not submitted: first in record 1"


def test_answers_by_user_and_a_chat_as_prompt(convert):
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    record = {
        "fields": {"talk": chat, "text": "yo"},
        "responses": [
            {"user_id": None, "status": "submitted", "values": {"tone": {"value": "rude"}, "ok": {"value": ["a", 1]}}}
        ],
    }
    judgements, account = convert("argilla", record, prompt="talk", responses=("text",), critique="tone")
    prompt = (Message("system", "be brief"), Message("user", "hi"))
    assert judgements == [Judgement(prompt, ("yo",), critique=("rude",), id="1")]
    assert account == ["1 answers left out because they are not a rating, ranking or text: `ok`: first in record 1"]


def test_answers_that_are_of_no_response_or_kind_are_counted(convert):
    answers = {name: [{"value": value, "user_id": "u"}] for name, value in (("tone", "rude"), ("stars", 3))}
    rank = {"order": [{"value": ["response1", "response9"], "user_id": "u"}], "why-1": [{"value": "w", "user_id": "u"}]}
    judgements, account = convert("argilla", ARGILLA | {"responses": answers | rank})
    assert [judgement.critique for judgement in judgements] == [("w", None)]
    assert account[:3] == [
        "1 answers left out because they name no response: `tone`: first in record 1",
        "1 ratings left out because they name no response: `stars`: first in record 1",
        "1 rankings left out because they do not rank each response once: `order`: first in record 1",
    ]


def test_fields_of_other_names_are_asked_for(convert):
    with pytest.raises(ValueError, match="set --prompt to the field with the prompt: x, y"):
        convert("argilla", {"fields": {"x": "a", "y": "b"}, "responses": {}})
    with pytest.raises(ValueError, match="set --responses to the right ones of: x, y"):
        convert("argilla", {"fields": {"x": "a", "y": "b"}, "responses": {}}, prompt="x")
    judgements, account = convert(
        "argilla", {"fields": {"x": "a", "y": "b"}, "responses": {}}, prompt="x", responses=["y"]
    )
    assert judgements == [] and account == ["1 records without answers left out: first in record 1"]


def test_an_annotation_of_label_studio_with_an_emoji_before_the_span(convert):
    """In "😀 kale" a browser counts 3 to 7, which are the characters 2 to 6."""
    judgements, account = convert("labelstudio", LABELSTUDIO)
    assert judgements == [
        Judgement(
            "name a fiber",
            ("😀 kale is bad",),
            score=(4.0,),
            critique=("Wrong: “kale”\ntoo short",),
            spans=((Span(2, 6),),),
            expected="kale has 4 g",
            source="10",
            id="41",
        )
    ]
    assert account[:2] == [
        "1 results of type choices left out: first in record 1",
        "1 annotations left out because they were cancelled: first in record 1",
    ]


@pytest.mark.parametrize(("units", "place"), [(0, 0), (1, 1), (3, 2), (4, 3), (6, 4), (7, 5)])
def test_units_of_utf_16_are_characters(units, place):
    assert character("a😀b😀c", Value(units)) == place


@pytest.mark.parametrize("units", [2, 8, -1, 1.5])
def test_units_that_begin_no_character_are_refused(units):
    with pytest.raises(ValueError):
        character("a😀b😀c", Value(units))


def test_a_comment_on_a_region_quotes_it(convert):
    comment = result("comment", "resp", "textarea", start=3, end=7, text="not a grain")
    record = LABELSTUDIO | {"annotations": [{"completed_by": None, "result": [comment]}]}
    judgements, _ = convert("labelstudio", record)
    assert judgements[0].critique == ("“kale”: not a grain",) and judgements[0].source is None


def test_a_ranker_orders_items_and_buckets_do_not(convert):
    judgements, _ = convert("labelstudio", LABELSTUDIO_RANKER)
    assert judgements == [Judgement("name a fiber", ("sand", "kale"), ranking="B > A", source="10", id="42")]
    buckets = result("rank", "results", "ranker", ranker={"good": ["m2"], "bad": ["m1"]})
    judgements, account = convert("labelstudio", LABELSTUDIO_RANKER | {"annotations": [{"result": [buckets]}]})
    assert judgements == []
    assert account[0] == "1 rankings left out because they use buckets, or do not rank all responses: first in record 1"


def test_pairwise_results_that_leave_the_order_open_are_pairs(convert):
    """kale > sand and sand > rock give one order. Without the second comparison the rank of rock is open."""
    judgements, _ = convert("labelstudio", LABELSTUDIO_PAIRWISE)
    assert [judgement.ranking for judgement in judgements] == ["B > A > C"]
    first = LABELSTUDIO_PAIRWISE["annotations"][0]["result"][:1]
    record = LABELSTUDIO_PAIRWISE | {"annotations": [{"completed_by": 10, "result": first}]}
    judgements, account = convert("labelstudio", record)
    assert judgements == [Judgement("name a fiber", ("sand", "kale"), ranking="B > A", source="10", id="43")]
    assert account[0] == "1 records written as pairs because their comparisons fit no unique ranking: first in record 1"


def test_a_wrong_offset_is_named(convert):
    wrong = result("label", "resp", "labels", start=1, end=7, text="kale", labels=["Wrong"])
    with pytest.raises(
        ValueError, match=r"annotations\[0\].result\[0\].value.start: 1 is in the middle of a character"
    ):
        convert("labelstudio", LABELSTUDIO | {"annotations": [{"result": [wrong]}]})
