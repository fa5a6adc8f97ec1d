"""Facts of a case in the questions of a judge, such as a reference answer: the place {reference} of a template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_modules.judgements.files import first_ten
from data_modules.judgements.schema import Judgement
from data_modules.text.templates import places_of, refuse_template

Facts = Mapping[str, Any]


def fact_places(name: str, template: str, needed: Sequence[str], allowed: Sequence[str] = ()) -> tuple[str, ...]:
    """The places of a template that are facts: all but those with a meaning of their own.

    Args: name: the knob it came in by; needed, allowed: places with a meaning.
    Raises:
        ValueError: a template without a place it needs, or with one that is no name.
    """
    places = places_of(name, template)
    further = tuple(place for place in places if place not in (*needed, *allowed))
    misspelt = not set(needed) <= set(places)  # where a place is missing, another may have been meant for it
    names = [place for place in further if place.isidentifier() and not misspelt]
    refuse_template(name, template, needed, (*allowed, *names))
    return further


def facts_of(judgement: Judgement) -> Facts:
    """`meta.facts`, as a prediction writes them.  Raises ValueError: they are no object."""
    facts = judgement.meta.get("facts", {})
    if not isinstance(facts, dict):
        raise ValueError(f'{judgement.where or "meta"}: meta.facts must be an object like {{"reference": "…"}}')
    return facts


def refuse_missing_facts(places: Sequence[str], cases: Iterable[tuple[str, Facts]]) -> None:
    """Raises ValueError: cases that lack a fact for one of the places, ten of them by name.

    Args: cases: what a message calls each, and its facts.
    """
    missing = [
        f"{where}: there is no fact {place!r}" for where, facts in cases for place in places if place not in facts
    ]
    if missing:
        of = ", ".join(f"{{{place}}}" for place in places)
        summary = first_ten(f"the template has the places of facts {of}, and {len(missing)} are missing:", missing)
        raise ValueError(f"{summary}\nAdd them to the facts of the prompts, or take the places out of the template")


def as_texts(places: Sequence[str], facts: Facts) -> dict[str, str]:
    """What stands at the places: a text as it is, anything else as JSON."""
    return {place: _as_text(facts[place]) for place in places}


def _as_text(fact: Any) -> str:
    return fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False, default=str)
