"""HH-RLHF, UltraFeedback and LMSYS: rankings, scores and votes."""

import pytest

from data_modules.judgements.schema import Judgement, Message
from tests.data_modules.feedback.formats.examples import (
    HH,
    KAGGLE,
    LMSYS,
    ULTRAFEEDBACK,
    ULTRAFEEDBACK_BINARIZED,
)


def test_a_transcript_is_a_conversation(convert):
    before = (Message("user", "is kale high ?"), Message("assistant", "yes ."), Message("user", "source ?"))
    judgements, account = convert("hh", HH)
    assert judgements == [Judgement(before, ("the label .", "no ."), ranking="A > B", source="person", id="1")]
    assert account == []


def test_transcripts_that_are_no_pair_are_counted_or_refused(convert):
    transcript = "\n\nHuman: a\n\nAssistant: b"
    records = [
        {"chosen": transcript, "rejected": "\n\nHuman: z\n\nAssistant: b"},
        {"chosen": transcript, "rejected": transcript[:-2]},
    ]
    judgements, account = convert("hh", *records)
    assert judgements == [] and account == [
        "1 records whose two conversations differ before the last answer left out: first in record 1",
        "1 records without an answer left out: first in record 2",
    ]
    with pytest.raises(ValueError, match="record 1: rejected: not a transcript"):
        convert("hh", {"chosen": transcript, "rejected": "b"})


def test_a_turn_without_text_inside_a_transcript_is_left_out(convert):
    start = "\n\nHuman: a\n\nAssistant:\n\nHuman: b\n\nAssistant: "
    judgements, account = convert("hh", {"chosen": start + "c", "rejected": start + "d"})
    assert judgements[0].prompt == (Message("user", "a"), Message("user", "b"))
    assert account == ["2 turns without text left out: first in record 1"]


def test_completions_have_scores_and_critiques(convert):
    """A blank response is left out; a score of 10 with a rating of 1 is reported but kept."""
    judgements, account = convert("ultrafeedback", ULTRAFEEDBACK)
    meta = {
        "models": ["alpaca-7b", "gpt-4"],
        "fine_grained": [4.0, 1.0],
        "ratings": [{"helpfulness": "4", "honesty": "4"}, {"helpfulness": "1", "honesty": "1"}],
        "dataset": "evol_instruct",
    }
    assert judgements == [
        Judgement(
            "name a fiber",
            ("kale", "sand"),
            score=(7.5, 10.0),
            critique=("good", "bad"),
            source="gpt-4",
            meta=meta,
            id="1",
        )
    ]
    assert account[:2] == [
        "1 responses without text left out: first in record 1",
        "1 scores of 10 with a mean rating of at most 2, which may be misread 1.0: first in record 1",
    ]
    assert "completions[].custom_system_prompt (1)" in account[2]
    assert "completions[].annotations.honesty.Rationale (1)" in account[2] and "models (1)" in account[2]


def test_a_response_without_a_score_has_none(convert):
    first, second, _ = ULTRAFEEDBACK["completions"]
    completions = [first, second | {"overall_score": None, "fine-grained_score": float("nan"), "critique": ""}]
    judgements, account = convert("ultrafeedback", ULTRAFEEDBACK | {"completions": completions})
    assert judgements[0].score == (7.5, None) and judgements[0].critique == ("good", None)
    assert account[0] == "1 responses without an overall score: first in record 1"


def test_the_binarized_pair_has_a_ranking_and_scores(convert):
    judgements, _ = convert("ultrafeedback", ULTRAFEEDBACK_BINARIZED)
    pair = Judgement("name a fiber", ("kale", "sand"), score=(8.5, 3.0), ranking="A > B", source="gpt-4", id="f0e37e9f")
    assert judgements == [pair]


@pytest.mark.parametrize(
    ("winner", "ranking"),
    [("model_a", "A > B"), ("model_b", "B > A"), ("tie", "A = B"), ("tie (bothbad)", "A = B"), ("both_bad", "A = B")],
)
def test_a_vote_is_a_ranking(convert, winner, ranking):
    judgements, account = convert("lmsys", LMSYS | {"winner": winner})
    meta = {"models": ["alpaca-13b", "koala-13b"], "winner": winner}
    assert judgements == [
        Judgement("hi", ("yo", "hello"), ranking=ranking, source="arena_user_973", meta=meta, id="58210e39")
    ]
    assert account[-1].endswith("anony (1), language (1), tstamp (1)")
    assert len(account) == (2 if "bad" in winner else 1)


def test_votes_that_are_of_no_kind_are_refused(convert):
    with pytest.raises(ValueError, match="winner: got 'model_c', must be one of model_a, model_b, tie"):
        convert("lmsys", LMSYS | {"winner": "model_c"})
    with pytest.raises(ValueError, match="winner_tie: exactly one of them must be 1, but 0 are"):
        convert("lmsys", KAGGLE | {"winner_tie": "0"})
    with pytest.raises(ValueError, match="response_a: must be a JSON list of texts in a text"):
        convert("lmsys", KAGGLE | {"response_a": '{"a": 1}'})


def test_a_vote_of_the_first_round_is_of_that_round(convert):
    """With two rounds, `turn: 1` judges the first; with `turn: 2` the conversations differ before the last answer."""
    later = [{"content": "more", "role": "user"}, {"content": "ok", "role": "assistant"}]
    record = LMSYS | {f"conversation_{side}": LMSYS[f"conversation_{side}"] + later for side in "ab"}
    judgements, _ = convert("lmsys", record)
    assert judgements[0].prompt == "hi" and judgements[0].responses == ("yo", "hello")
    judgements, account = convert("lmsys", record | {"turn": 2})
    assert judgements == []
    assert account == ["1 records whose two conversations differ before the last answer left out: first in record 1"]


def test_the_rows_of_kaggle_are_lists_in_texts(convert):
    judgements, account = convert("lmsys", KAGGLE, KAGGLE | {"id": "x", "response_a": "[null]"})
    meta = {"models": ["gpt-4", "koala-13b"], "winner": "tie"}
    assert judgements == [Judgement("hi", ("yo", "hello"), ranking="A = B", source="person", meta=meta, id="30192")]
    assert account == ["1 records without an answer left out: first in record 2"]
