"""UltraFeedback (Cui et al. 2023, https://arxiv.org/abs/2310.01377), original or binarized."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_modules.feedback.formats import trl
from data_modules.feedback.formats.account import NO_ANSWER, NO_PROMPT, Account, LeftOut
from data_modules.feedback.formats.value import Value
from data_modules.judgements.schema import Judgement

JUDGE = "gpt-4"
_BINARIZED = {"score_chosen": (1.0, 10.0), "chosen-rating": (1.0, 5.0)}  # field → scale of its scores


def fits(record: dict[str, Any]) -> bool:
    """Whether a record has this format."""
    whole = isinstance(record.get("completions"), list) and "instruction" in record
    return whole or "chosen" in record and any(name in record for name in _BINARIZED)


def judgements(record: Value, account: Account) -> list[Judgement]:
    """One judgement with overall scores and critiques of the completions. `meta` holds the ratings by aspect."""
    if "completions" not in record:
        account.scale = next((scale for name, scale in _BINARIZED.items() if name in record), account.scale)
        return [replace(line, source=JUDGE) for line in trl.judgements(record, account)]
    account.scale = (1.0, 10.0)
    prompt = record["instruction"].words()
    completions = record["completions"].elements()
    answers = [completion for completion in completions if completion["response"].words()]
    if len(answers) < len(completions):
        account.note("responses without text left out", len(completions) - len(answers))
    if prompt is None or not answers:
        raise LeftOut(NO_PROMPT if prompt is None else NO_ANSWER)
    scores = tuple(
        completion["overall_score"].number() if completion["overall_score"] else None for completion in answers
    )
    fine = [
        completion["fine-grained_score"].number() if completion["fine-grained_score"] else None
        for completion in answers
    ]
    doubtful = sum(score == 10 and mean is not None and mean <= 2 for score, mean in zip(scores, fine, strict=True))
    if doubtful:
        account.note("scores of 10 with a mean rating of at most 2, which may be misread 1.0", doubtful)
    if silent := scores.count(None):
        account.note("responses without an overall score", silent)
    critiques = tuple(completion["critique"].words() for completion in answers)
    meta = {
        "models": [completion["model"].name() for completion in answers],
        "fine_grained": fine,
        "ratings": [_ratings(completion["annotations"]) for completion in answers],
        "dataset": record["source"].name(),
    }
    return [
        Judgement(
            prompt,
            tuple(completion["response"].text() for completion in answers),
            score=scores if any(score is not None for score in scores) else None,
            critique=critiques if any(critiques) else None,
            source=JUDGE,
            meta=meta,
            id=record["id"].name(),
        )
    ]


def _ratings(annotations: Value) -> dict[str, Any]:
    """The rating of each aspect. The record stores the ratings as an object, or as a list with one object."""
    ratings: dict[str, Any] = {}
    for aspect, value in annotations.fields().items() if annotations else ():
        for rating in value.elements()[:1] if isinstance(value.json, list) else [value]:
            ratings[aspect] = rating["Rating"].raw()
    return ratings
