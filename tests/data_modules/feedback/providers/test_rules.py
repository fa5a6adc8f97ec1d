"""Feedback from tasks: rewards alone, or everything that the rules give."""

from dataclasses import replace

import pytest

from data_modules.feedback.providers.provider import merged, with_answers, without
from data_modules.feedback.providers.rules import EnvironmentProvider, RuleProvider
from data_modules.judgements.files import read, write
from data_modules.judgements.schema import Judgement, Span
from data_modules.text.environment import Case, Outcome


class Reply:
    def __init__(self, word):
        self.word = word

    def reply(self, text, finished):
        return Outcome(4.0 * (text == self.word) + 1.0 * finished)


class Words:
    """Task to say a word: reward 4 for the word, 1 for finishing."""

    turns = 1

    def cases(self, split):
        return [Case(f"{split}-{word}", f"say {word}", {"word": word}) for word in {"train": "ab"}.get(split, "")]

    def begin(self, case):
        return Reply(case.facts["word"])

    def corpus(self):
        yield "say a b c"

    def demonstrations(self, split):
        return []

    def expected(self, case):
        return case.facts["word"]

    def critique(self, case, reply, seed):
        return None if reply == case.facts["word"] else f"it should be {case.facts['word']} ({seed})"

    def spans(self, case, reply):
        return [] if reply == case.facts["word"] else [(0, len(reply)), (1, 1)]


LINES = [
    Judgement("say a", ("a", "c"), meta={"finished": [True, False]}, where="f:1"),
    Judgement("another wording", ("c",), id="train-b", where="f:2"),
]


def completed(provider, lines):
    ticks = []
    result, account = provider.complete(lines, lambda: ticks.append(1))
    assert len(ticks) == len(lines) and not account.left_out and account.stopped is None
    return result, account.counters["calls"]


def test_an_environment_pays():
    """5 of 5 for the right word, finished; 0 for a wrong one, cut off; the second line's id means b: 1 of 5."""
    result, calls = completed(EnvironmentProvider(Words(), scale=(0.0, 5.0)), LINES)
    assert [line.score for line in result] == [(1.0, 0.0), (pytest.approx(0.2),)] and calls == 3
    assert {line.source for line in result} == {"environment"} and result[0].critique is None


def test_a_rule_knows_it_all(tmp_path):
    result, calls = completed(RuleProvider(Words(), scale=(0.0, 5.0), seed=7), LINES)
    assert result[0].critique == (None, "it should be a (7)") and result[0].spans == (None, (Span(0, 1),))
    assert result[0].expected == "a" and result[0].ranking == "A > B" and result[1].ranking is None
    assert calls == 3 + 3 + 2
    write(tmp_path / "out.jsonl", result)
    assert read(tmp_path / "out.jsonl") == result


def test_scores_within_ties_tie():
    result, _ = completed(RuleProvider(Words(), scale=(0.0, 5.0), ties=1.0), LINES[:1])
    assert result[0].ranking == "A = B"


def test_what_somebody_said_stays_and_keeps_its_name():
    line = Judgement("say a", ("a", "c"), score=(None, 0.75), expected="A !", source="ann", where="f:1")
    (result,), calls = completed(RuleProvider(Words(), scale=(0.0, 5.0)), [line])
    assert result.score == (1.0, 0.75) and result.expected == "A !" and result.source == "ann"
    assert result.meta["said_by"] == dict.fromkeys(("score", "critique", "spans", "ranking"), "rule") and calls == 3


def test_who_adds_nothing_has_said_nothing():
    """The environment adds nothing, because the score exists; the rule adds only a span and the expected response."""
    line = Judgement("say a", ("c",), score=(0.75,), critique=("no",), where="f:1")
    for source in (None, "ann"):
        (result,), calls = completed(EnvironmentProvider(Words(), scale=(0.0, 5.0)), [replace(line, source=source)])
        assert result == replace(line, source=source) and calls == 0
    (result,), _ = completed(RuleProvider(Words(), scale=(0.0, 5.0)), [replace(line, source="ann")])
    assert result.meta["said_by"] == {"spans": "rule", "expected": "rule"}


def test_an_expected_response_alone_is_no_reply(tmp_path):
    (result,), _ = completed(RuleProvider(Words(), scale=(0.0, 5.0)), [Judgement("say a", expected="a")])
    assert result == Judgement("say a", expected="a")


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="f:9: prompt: not a case of the task"):
        EnvironmentProvider(Words()).complete([Judgement("say z", ("z",), where="f:9")], int)
    with pytest.raises(ValueError, match="f:1: the reward 5 is outside `scale`, 0 to 1"):
        EnvironmentProvider(Words()).complete(LINES, int)
    with pytest.raises(ValueError, match="scale: got 1 to 0"):
        EnvironmentProvider(Words(), scale=(1.0, 0.0))
    several = Words()
    several.turns = 2
    with pytest.raises(ValueError, match="task: has 2 turns"):
        EnvironmentProvider(several)


def test_merging_by_response():
    assert merged((None, 1), (2, 3)) == (2, 1) and merged(None, (None, 2)) == (None, 2)
    assert merged(None, ()) is None and merged((None, None), (None, None)) is None


def test_what_is_said_can_be_unsaid():
    line = with_answers(
        with_answers(Judgement("q", ("a", "b")), "rule", score=(1.0, None)), "judge", preference=0.25, ranking=None
    )
    assert line.source == "rule" and line.meta == {"said_by": {"preference": "judge"}} and line.preference == 0.25
    assert without(line, ("preference",)) == Judgement("q", ("a", "b"), score=(1.0, None), source="rule")
    assert without(line, ("preference", "score")) == Judgement("q", ("a", "b"))
    assert with_answers(line, "judge", score=None) is line
