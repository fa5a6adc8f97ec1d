"""Convert pairwise comparisons into one ranking, or into pairs if no unique ranking fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar

from data_modules.feedback.formats.account import Account
from data_modules.judgements.ranking import format_ranking
from data_modules.judgements.schema import Judgement

Comparison = tuple[int, int, str]  # indices of two responses, and the sign between them: ">", "<" or "="
T = TypeVar("T")


def ranks_of(responses: int, comparisons: Sequence[Comparison]) -> tuple[int, ...] | None:
    """Rank of each response, 0 for the best; None unless exactly one order of all responses fits the comparisons."""
    block = list(range(responses))  # tied responses have the same number
    for i, j, sign in comparisons:
        if sign == "=":
            block = [block[i] if number == block[j] else number for number in block]
    order: TopologicalSorter[int] = TopologicalSorter({number: () for number in block})
    for i, j, sign in comparisons:
        if sign != "=":
            better, worse = (i, j) if sign == ">" else (j, i)
            order.add(block[worse], block[better])
    ranks: dict[int, int] = {}
    try:
        order.prepare()
    except CycleError:
        return None
    while order.is_active():
        ready = order.get_ready()
        if len(ready) > 1:
            return None
        ranks[ready[0]] = len(ranks)
        order.done(*ready)
    return tuple(ranks[number] for number in block)


def compared(judgement: Judgement, comparisons: Sequence[Comparison], account: Account) -> list[Judgement]:
    """Add a ranking to a judgement; if no ranking fits, return the judgement unranked, and a judgement for each pair.

    The unranked judgement keeps only responses that have other feedback. It is left out if there are no such responses.
    """
    if not comparisons:
        return [judgement]
    ranks = ranks_of(len(judgement.responses), comparisons)
    if ranks is not None:
        return [replace(judgement, ranking=format_ranking(ranks))]
    account.note("records written as pairs because their comparisons fit no unique ranking")
    bare = Judgement(judgement.prompt, source=judgement.source, meta=judgement.meta, id=judgement.id)
    texts, signs = judgement.responses, {">": "A > B", "<": "B > A", "=": "A = B"}
    pairs = [replace(bare, responses=(texts[i], texts[j]), ranking=signs[sign]) for i, j, sign in comparisons]
    per_response = (judgement.score, judgement.critique, judgement.spans)
    places = [
        i for i in range(len(texts)) if any(values is not None and values[i] is not None for values in per_response)
    ]
    if not places and judgement.expected is None:
        return pairs
    rest = replace(
        bare,
        responses=tuple(texts[i] for i in places),
        expected=judgement.expected,
        score=_at(judgement.score, places),
        critique=_at(judgement.critique, places),
        spans=_at(judgement.spans, places),
    )
    return [rest, *pairs]


def _at(values: tuple[T, ...] | None, places: list[int]) -> tuple[T, ...] | None:
    chosen = tuple(values[i] for i in places) if values is not None else ()
    return chosen if any(value is not None for value in chosen) else None
