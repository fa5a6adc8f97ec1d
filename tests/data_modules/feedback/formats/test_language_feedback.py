"""SLF5K and QA-Feedback: critiques, spans, corrections and comparisons."""

import json
from pathlib import Path

import pytest

from data_modules.feedback.formats import slf5k
from data_modules.feedback.formats.comparisons import ranks_of
from data_modules.judgements.schema import Judgement, Span
from tests.data_modules.feedback.formats.examples import QA_FEEDBACK, SLF5K

SHARED = "shared/data/qa_feedback/feedback_350.json"
FILE = next((path for folder in Path(__file__).parents if (path := folder / SHARED).is_file()), None)
CRITIQUE = "\n".join(
    [
        "Wrong-Grounding: “in Bonn” The passages say: “a city . it is big .”",
        "Redundant: “in Bonn” It repeats: “in Bonn”",
        "Unverifiable: “Bonn” 2009",
        "Missing-Answer: “Bonn”",
    ]
)


def test_a_summary_has_a_critique_and_an_ideal_and_two_summaries_are_compared(convert):
    judgements, account = convert("slf5k", SLF5K)
    meta = {"subreddit": "relationships", "feedback_class": "Factuality", "tldr_human_reference_summary": "cat left"}
    prompt = "Write an excellent summary of the given text.\n\nTitle: cat gone\n\nText: the cat ran away\n\nTL;DR:"
    common_fields = {"prompt": prompt, "source": "person", "meta": meta}
    assert judgements == [
        Judgement(
            responses=("a dog ran",),
            critique=("it was a cat",),
            expected="my cat ran away",
            id="t3_3qhwor:1",
            **common_fields,
        ),
        Judgement(responses=("a cat", "the cat ran"), ranking="B > A", id="t3_3qhwor:2", **common_fields),
    ]
    assert account == ["fields left out (in how many records): has_additional_feedback (1)"]


def test_a_comparison_alone_and_one_without_a_preference(convert):
    pair = {name: SLF5K[name] for name in ("post", "title", "comparison_preference", *slf5k._PAIR)}
    judgements, _ = convert("slf5k", pair | {"summary_prompt": "sum up"})
    assert [(line.prompt, line.ranking, line.id) for line in judgements] == [("sum up", "B > A", "1")]
    judgements, account = convert("slf5k", pair | {"comparison_preference": None})
    assert judgements == [] and account[0].startswith("1 pairs of summaries left out because they have no preference")
    with pytest.raises(ValueError, match="comparison_preference: got 'Summary C', must be one of Summary A, Summary B"):
        convert("slf5k", pair | {"comparison_preference": "Summary C"})


def test_an_answer_has_spans_and_a_critique_in_words(convert):
    """2 beats 1; 1 ties with 3 and 4; 2 beats 3 and 4; 3 ties with 4: B > A = C = D."""
    judgements, account = convert("qa_feedback", QA_FEEDBACK)
    assert judgements == [
        Judgement(
            "where ?",
            ("in Bonn in Bonn", "in LA", "there", "here"),
            critique=(CRITIQUE, None, None, None),
            spans=((Span(0, 7), Span(7, 15), Span(3, 7)), None, None, None),
            expected="in LA .",
            ranking="B > A = C = D",
            source="person",
            meta={"gold": "in LA"},
            id="1",
        )
    ]
    assert account == ["1 records without their passages (--passages puts them before the question): first in record 1"]


def test_passages_stand_before_the_question_where_asked(convert):
    judgements, account = convert("qa_feedback", QA_FEEDBACK, passages=True)
    assert judgements[0].prompt == "LA: a city . it is big .\n\nBonn: a town .\n\nwhere ?" and account == []


def test_a_circle_becomes_pairs_and_what_is_said_of_the_first_answer_stays_with_it(convert):
    """1 beats 2, 2 beats 3, and 3 beats 1: no order fits."""
    judgements, account = convert("qa_feedback", QA_FEEDBACK | {"preference": [1, 2, 0, 1, 0, 0]})
    first, *pairs = judgements
    assert (first.responses, first.critique, first.ranking) == (("in Bonn in Bonn",), (CRITIQUE,), None)
    assert first.spans == ((Span(0, 7), Span(7, 15), Span(3, 7)),) and first.expected == "in LA ."
    assert [(*pair.responses, pair.ranking) for pair in pairs] == [
        ("in Bonn in Bonn", "in LA", "A > B"),
        ("in Bonn in Bonn", "there", "B > A"),
        ("in Bonn in Bonn", "here", "A = B"),
        ("in LA", "there", "A > B"),
        ("in LA", "here", "A = B"),
        ("there", "here", "A = B"),
    ]
    assert all(pair.expected is pair.critique is pair.spans is None and pair.meta for pair in pairs)
    assert [judgement.id for judgement in judgements] == [f"1:{i}" for i in range(1, 8)]
    assert account[1] == "1 records written as pairs because their comparisons fit no unique ranking: first in record 1"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"preference": [1, 2]}, "preference: must be six numbers"),
        ({"preference": [1, 2, 3, 0, 0, 0]}, "preference: must be six numbers"),
        ({"preference": [1, 2, 0.5, 0, 0, 0]}, "preference[2]: must be a whole number, is the number 0.5"),
        ({"feedback": {"errors": [{"start": "x"}]}}, "feedback.errors[0].start: must be a number, is a text"),
        ({"feedback": []}, "feedback: must be an object, is empty list"),
        ({"passages": None}, "passages: is missing; it must be a list"),
    ],
)
def test_what_is_wrong_is_named_by_its_field(convert, change, fault):
    with pytest.raises(ValueError) as error:
        convert("qa_feedback", QA_FEEDBACK | change)
    assert str(error.value).startswith(f"f.json: record 1: {fault}")


@pytest.mark.parametrize(
    ("comparisons", "ranks"),
    [
        ([(0, 1, ">"), (1, 2, ">")], (0, 1, 2)),  # the implied comparison may be missing
        ([(0, 1, "<"), (1, 2, "="), (0, 2, "<")], (1, 0, 0)),
        ([(0, 1, "="), (1, 2, "=")], (0, 0, 0)),
        ([(0, 1, "="), (1, 2, "="), (0, 2, ">")], None),  # ties that contradict a strict comparison
        ([(0, 1, ">"), (1, 2, ">"), (2, 0, ">")], None),
        ([(0, 1, ">"), (0, 1, "<"), (1, 2, ">")], None),
        ([(0, 1, ">"), (0, 2, ">")], None),  # 1 against 2 is open
        ([(0, 1, ">")], None),
    ],
)
def test_comparisons_fit_one_ranking_or_none(comparisons, ranks):
    assert ranks_of(3, comparisons) == ranks


@pytest.mark.skipif(FILE is None, reason=f"there is no {SHARED} beside the project or above it")
def test_the_whole_file_of_qa_feedback(convert):
    """15 of 350 records fit no ranking: 335 lines, and for each of the 15 six pairs and a line on the first answer."""
    records = json.loads(FILE.read_text(encoding="utf-8"))
    judgements, account = convert("qa_feedback", *records)
    assert len(judgements) == 335 + 15 * 7 and len({judgement.prompt for judgement in judgements}) == 350
    assert "15 records written as pairs because their comparisons fit no unique ranking: first in record 1" in account
    ties = sum(j.ranks[a] == j.ranks[b] for j in judgements if j.ranks for a in range(len(j.ranks)) for b in range(a))
    assert ties == 254 == sum(record["preference"].count(0) for record in records)
    assert sum(len(spans) for j in judgements for spans in j.spans or () if spans) == 938
    assert sum(judgement.expected is not None for judgement in judgements) == 340
