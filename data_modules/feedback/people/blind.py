"""Blind comparison: replies to a prompt are shown in an order that says nothing of who replied, and put back after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data_modules.judgements.ranking import format_ranking
from data_modules.judgements.schema import Judgement, plain

NAMES = "replies_of"  # in `meta`: who said each response
SHUFFLED = "shuffled"  # in `meta` of what people see: the same names in an order that is not the page's
_OF_EACH = (NAMES, "finished", "tokens")  # of `meta`, a list with one for each response


def names_policies(judgement: Judgement) -> bool:
    """Whether a line says who replied, as those of `changed.jsonl` do; then people must not see it."""
    return NAMES in judgement.meta


def shuffled(judgement: Judgement) -> Judgement:
    """The responses in an order by the digest of prompt and responses, and no word on whose they are.

    Raises:
        ValueError: the line says of itself that it is shuffled.
    """
    if SHUFFLED in judgement.meta:
        raise ValueError(f"meta: {SHUFFLED} is what a blind comparison writes; take it out")
    if len(judgement.responses) < 2:
        return judgement
    other = _reordered(judgement, _order(judgement))
    meta = {name: value for name, value in other.meta.items() if name != NAMES}
    return replace(other, meta=meta | {SHUFFLED: judgement.meta.get(NAMES, [])})


def restored(judgement: Judgement) -> Judgement:
    """What was said of a shuffled line, in the order of the responses before; any other line as it is."""
    if SHUFFLED not in judgement.meta:
        return judgement
    order = _order(judgement)
    back = _reordered(judgement, sorted(range(len(order)), key=order.__getitem__))
    meta = dict(back.meta)
    names = meta.pop(SHUFFLED)
    return replace(back, meta=meta | ({NAMES: names} if names else {}))


def _order(judgement: Judgement) -> list[int]:
    """The place that each response on the page had before; the same for a judgement and its shuffled form.

    By the digest of the prompt and of the responses in the order of the alphabet.
    """
    key = json.dumps([plain(judgement.prompt), sorted(judgement.responses)])
    return sorted(range(len(judgement.responses)), key=lambda i: hashlib.sha256(f"{key}{i}".encode()).digest())


def _reordered(judgement: Judgement, places: Sequence[int]) -> Judgement:
    """Response i is what response places[i] was, with all that is said of it."""

    def each(values: Any) -> Any:
        return None if values is None else type(values)(values[place] for place in places)

    ranks = judgement.ranks
    meta = {
        name: each(value) if name in _OF_EACH and isinstance(value, list) and len(value) == len(places) else value
        for name, value in judgement.meta.items()
    }
    return replace(
        judgement,
        responses=each(judgement.responses),
        ranking=None if ranks is None else format_ranking(each(ranks)),
        meta=meta,
    )
