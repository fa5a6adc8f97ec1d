"""QA-Feedback (Wu et al. 2023, https://arxiv.org/abs/2306.01693): four answers to a question with people's feedback."""

from __future__ import annotations

import json
from typing import Any

from data_modules.feedback.formats.account import NO_ANSWER, NO_PROMPT, Account, LeftOut
from data_modules.feedback.formats.comparisons import compared
from data_modules.feedback.formats.value import Value
from data_modules.judgements.schema import Judgement, Span

_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
_SIGNS = {0: "=", 1: ">", 2: "<"}


def fits(record: dict[str, Any]) -> bool:
    """Whether a record has this format."""
    return {"question", "prediction 1", "feedback"} <= record.keys()


def judgements(record: Value, account: Account) -> list[Judgement]:
    """A ranking or pairs of answers; spans and critique of the first answer, and its correction as `expected`."""
    question = record["question"].words()
    texts = [record[f"prediction {i}"].words() for i in range(1, 5)]
    if question is None or not all(texts):
        raise LeftOut(NO_PROMPT if question is None else NO_ANSWER)
    responses = tuple(text for text in texts if text)
    passages = [[entry.text() for entry in passage.elements()] for passage in record["passages"].elements()]
    if account.options.passages:
        question = "\n\n".join([*(f"{title}: {' '.join(rest)}" for title, *rest in passages), question])
    elif passages:
        account.note("records without their passages (--passages puts them before the question)")
    feedback = record["feedback"]
    errors = feedback["errors"].elements()
    spans = tuple(Span(*(error[name].whole() for name in ("start", "end"))) for error in errors)
    words = [_error(error, span, responses[0], passages) for error, span in zip(errors, spans, strict=True)]
    words += [_missing(entry, passages) for entry in feedback["missing-info"].elements()]
    judgement = Judgement(
        question,
        responses,
        critique=("\n".join(words), None, None, None) if words else None,
        spans=(spans, None, None, None) if spans else None,
        expected=feedback["corrected-prediction"].words(),
        source="person",
        meta={"gold": record["gold"].raw()} if "gold" in record else {},
    )
    return compared(judgement, _comparisons(record["preference"]), account)


def _comparisons(preference: Value) -> list[tuple[int, int, str]]:
    signs = [value.whole() for value in preference.elements()] if preference else []
    if signs and (len(signs) != len(_PAIRS) or not set(signs) <= set(_SIGNS)):
        raise ValueError("preference: must be six numbers: 0 for a tie, 1 or 2 for the better answer of a pair")
    return [(i, j, _SIGNS[sign]) for (i, j), sign in zip(_PAIRS, signs, strict=False)]


def _error(error: Value, span: Span, response: str, passages: list[list[str]]) -> str:
    """A line of the critique: the kind of error, the quoted text, and the explanation."""
    line = f"{error['error type'].text()}: “{response[span.start : span.end].strip()}”"
    explanation = error["explanation"].words()
    if explanation is None:
        return line
    if (place := _place(explanation)) is not None:
        return f"{line} The passages say: “{_sentences(place, passages)}”"
    if error["error type"].json == "Redundant":
        return f"{line} It repeats: “{explanation.strip()}”"
    return f"{line} {explanation.strip()}"


def _place(explanation: str) -> Value | None:
    """The location in the passages, if the explanation is a location in JSON; None if the explanation is a text."""
    try:
        place = json.loads(explanation)
    except (ValueError, RecursionError):
        return None
    return Value(place, "explanation") if isinstance(place, dict) and "passage_id" in place else None


def _missing(missing: Value, passages: list[list[str]]) -> str:
    return f"{missing['error type'].text()}: “{_sentences(missing, passages)}”"


def _sentences(place: Value, passages: list[list[str]]) -> str:
    """The sentences at a place in a passage. Passages are numbered from 1; sentence 0 is the title."""
    passage, sentences = place["passage_id"].whole(), place["sentence_id"]
    numbers = [number.whole() for number in sentences.elements()]
    if not 1 <= passage <= len(passages) or any(not 0 <= i < len(passages[passage - 1]) for i in numbers):
        raise ValueError(f"{sentences.path}: passage {passage} with sentences {numbers} does not exist")
    return " ".join(passages[passage - 1][i].strip() for i in numbers)
