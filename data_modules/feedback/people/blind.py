"""Blind comparison: show replies in an order that hides which policy wrote which, and restore the order afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data_modules.judgements.ranking import format_ranking
from data_modules.judgements.schema import Judgement, plain

NAMES = "replies_of"  # in `meta`: the policy that wrote each response
SHUFFLED = "shuffled"  # in `meta` of an item on the page: the same names, in a different order from the page
_OF_EACH = (NAMES, "finished", "tokens")  # fields of `meta` with one value per response


def names_policies(judgement: Judgement) -> bool:
    """Whether a line names the policies that replied, as in `changed.jsonl`. Reviewers must not see these names."""
    return NAMES in judgement.meta


def shuffled(judgement: Judgement) -> Judgement:
    """Reorder the responses of a judgement by digest, and remove the names of the policies.

    Raises:
        ValueError: the judgement is already marked as shuffled.
    """
    if SHUFFLED in judgement.meta:
        raise ValueError(f"meta.{SHUFFLED}: reserved for blind comparisons; remove it")
    if len(judgement.responses) < 2:
        return judgement
    reordered = _reordered(judgement, _order(judgement))
    meta = {name: value for name, value in reordered.meta.items() if name != NAMES}
    return replace(reordered, meta=meta | {SHUFFLED: judgement.meta.get(NAMES, [])})


def restored(judgement: Judgement) -> Judgement:
    """Restore the original order of responses in a shuffled judgement; any other judgement is unchanged."""
    if SHUFFLED not in judgement.meta:
        return judgement
    order = _order(judgement)
    back = _reordered(judgement, sorted(range(len(order)), key=order.__getitem__))
    meta = dict(back.meta)
    names = meta.pop(SHUFFLED)
    return replace(back, meta=meta | ({NAMES: names} if names else {}))


def _order(judgement: Judgement) -> list[int]:
    """The original position of each response on the page; the same for a judgement and for its shuffled form.

    The order follows from a digest of the prompt and the alphabetically sorted responses.
    """
    key = json.dumps([plain(judgement.prompt), sorted(judgement.responses)])
    return sorted(range(len(judgement.responses)), key=lambda i: hashlib.sha256(f"{key}{i}".encode()).digest())


def _reordered(judgement: Judgement, places: Sequence[int]) -> Judgement:
    """Reorder a judgement: response i of the result is response `places[i]` of the argument, with its feedback."""

    def reorder(values: Any) -> Any:
        return None if values is None else type(values)(values[place] for place in places)

    ranks = judgement.ranks
    meta = {
        name: reorder(value) if name in _OF_EACH and isinstance(value, list) and len(value) == len(places) else value
        for name, value in judgement.meta.items()
    }
    return replace(
        judgement,
        responses=reorder(judgement.responses),
        ranking=None if ranks is None else format_ranking(reorder(ranks)),
        meta=meta,
    )
