"""UltraFeedback (Cui et al. 2023, https://arxiv.org/abs/2310.01377), whole or binarized."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_modules.feedback.formats import trl
from data_modules.feedback.formats.account import NO_ANSWER, NO_PROMPT, Account, LeftOut
from data_modules.feedback.formats.value import Value
from data_modules.judgements.schema import Judgement

JUDGE = "gpt-4"
_BINARIZED = {"score_chosen": (1.0, 10.0), "chosen-rating": (1.0, 5.0)}  # and the scale of these scores


def fits(record: dict[str, Any]) -> bool:
    """Whether a record is of this format."""
    whole = isinstance(record.get("completions"), list) and "instruction" in record
    return whole or "chosen" in record and any(name in record for name in _BINARIZED)


def judgements(record: Value, account: Account) -> list[Judgement]:
    """The completions with their overall scores and critiques; the ratings by aspect stand in `meta`."""
    if "completions" not in record:
        account.scale = next((scale for name, scale in _BINARIZED.items() if name in record), account.scale)
        return [replace(line, source=JUDGE) for line in trl.judgements(record, account)]
    account.scale = (1.0, 10.0)
    prompt = record["instruction"].words()
    completions = record["completions"].each()
    answers = [each for each in completions if each["response"].words()]
    if len(answers) < len(completions):
        account.note("responses without text left out", len(completions) - len(answers))
    if prompt is None or not answers:
        raise LeftOut(NO_PROMPT if prompt is None else NO_ANSWER)
    scores = tuple(each["overall_score"].number() if each["overall_score"] else None for each in answers)
    fine = [each["fine-grained_score"].number() if each["fine-grained_score"] else None for each in answers]
    doubtful = sum(score == 10 and mean is not None and mean <= 2 for score, mean in zip(scores, fine, strict=True))
    if doubtful:
        account.note("scores of 10 where the ratings have a mean of at most 2; they may be 1.0 misread", doubtful)
    if silent := scores.count(None):
        account.note("responses without an overall score", silent)
    critiques = tuple(each["critique"].words() for each in answers)
    meta = {
        "models": [each["model"].name() for each in answers],
        "fine_grained": fine,
        "ratings": [_ratings(each["annotations"]) for each in answers],
        "dataset": record["source"].name(),
    }
    return [
        Judgement(
            prompt,
            tuple(each["response"].text() for each in answers),
            score=scores if any(score is not None for score in scores) else None,
            critique=critiques if any(critiques) else None,
            source=JUDGE,
            meta=meta,
            id=record["id"].name(),
        )
    ]


def _ratings(annotations: Value) -> dict[str, Any]:
    """The rating of each aspect: an object, or a list of one."""
    ratings: dict[str, Any] = {}
    for aspect, value in annotations.fields().items() if annotations else ():
        for each in value.each()[:1] if isinstance(value.json, list) else [value]:
            ratings[aspect] = each["Rating"].raw()
    return ratings
