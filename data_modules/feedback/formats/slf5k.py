"""SLF5K: summaries of posts with language feedback (Scheurer et al. 2023, https://arxiv.org/abs/2303.16755)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_modules.feedback.formats.account import NO_ANSWER, NO_PROMPT, Account, LeftOut
from data_modules.feedback.formats.value import Value
from data_modules.judgements.fields import cut
from data_modules.judgements.schema import Judgement

PROMPT = "Write an excellent summary of the given text.\n\nTitle: {title}\n\nText: {post}\n\nTL;DR:"
_RANKINGS = {"Summary A": "A > B", "Summary B": "B > A"}
_PAIR = ("generated_summary_for_comparison_A", "generated_summary_for_comparison_B")


def fits(record: dict[str, Any]) -> bool:
    """Whether a record has this format."""
    return "post" in record and ("generated_summary_for_feedback" in record or _PAIR[0] in record)


def judgements(record: Value, account: Account) -> list[Judgement]:
    """A summary with its critique and the ideal summary, and a ranked pair of two other summaries."""
    prompt = record["summary_prompt"].words()
    post, title = record["post"].words(), record["title"].words()
    if post is None and prompt is None:
        raise LeftOut(NO_PROMPT)
    prompt = prompt or PROMPT.format(title=title or "", post=post)
    names = ("subreddit", "feedback_class", "tldr_human_reference_summary")
    meta = {name: record[name].raw() for name in names if name in record}
    lines = []
    summary, ideal = record["generated_summary_for_feedback"].words(), record["ideal_human_summary"].words()
    critique = record["feedback"].words()
    if summary or ideal:
        words = (critique,) if summary and critique else None
        responses = (summary,) if summary else ()
        lines = [Judgement(prompt, responses, critique=words, expected=ideal, meta=meta)]
    if critique and not summary:
        account.note("critiques left out because their summary is missing")
    lines += _comparison(record, prompt, meta, account)
    if not lines:
        raise LeftOut(NO_ANSWER)
    return [replace(line, source="person", id=record["id"].name()) for line in lines]


def _comparison(record: Value, prompt: str, meta: dict[str, Any], account: Account) -> list[Judgement]:
    pair = [record[name].words() for name in _PAIR]
    if not all(pair):
        return []
    preference = record["comparison_preference"].words()
    if preference is None:
        account.note("pairs of summaries left out because they have no preference")
        return []
    if preference not in _RANKINGS:
        raise ValueError(f"comparison_preference: got {cut(repr(preference))}, must be one of {', '.join(_RANKINGS)}")
    return [Judgement(prompt, tuple(text for text in pair if text), ranking=_RANKINGS[preference], meta=meta)]
