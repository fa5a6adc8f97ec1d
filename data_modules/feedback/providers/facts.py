"""Facts of a case in a judge's question, such as a reference answer at the place `{reference}` of a template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_modules.judgements.files import first_ten
from data_modules.judgements.schema import Judgement
from data_modules.text.templates import places_of, refuse_template

Facts = Mapping[str, Any]


def fact_places(name: str, template: str, needed: Sequence[str], allowed: Sequence[str] = ()) -> tuple[str, ...]:
    """The places of a template that are filled with facts: all places except the built-in ones.

    Args: name: the argument that holds the template, for messages; needed, allowed: required and optional built-in
        places.
    Raises:
        ValueError: the template lacks a required place, or has a place that is not an identifier.
    """
    places = places_of(name, template)
    further = tuple(place for place in places if place not in (*needed, *allowed))
    misspelt = not set(needed) <= set(places)  # an extra place may be a misspelt required one
    names = [place for place in further if place.isidentifier() and not misspelt]
    refuse_template(name, template, needed, (*allowed, *names))
    return further


def facts_of(judgement: Judgement) -> Facts:
    """The facts in `meta.facts` of a line.  Raises ValueError: `meta.facts` is not an object."""
    facts = judgement.meta.get("facts", {})
    if not isinstance(facts, dict):
        raise ValueError(f'{judgement.where or "meta"}: meta.facts: must be an object like {{"reference": "…"}}')
    return facts


def refuse_missing_facts(places: Sequence[str], cases: Iterable[tuple[str, Facts]]) -> None:
    """Check that cases have all facts.  Raises ValueError: some lack a fact; the message lists the first ten.

    Args: cases: the name of each case in messages, and the facts of the case.
    """
    missing = [f"{where}: has no fact {place!r}" for where, facts in cases for place in places if place not in facts]
    if missing:
        of = ", ".join(f"{{{place}}}" for place in places)
        summary = first_ten(f"the template needs the facts {of}, and {len(missing)} are missing:", missing)
        raise ValueError(f"{summary}\nAdd them to the facts of the prompts, or remove the places from the template")


def as_texts(places: Sequence[str], facts: Facts) -> dict[str, str]:
    """The text for each place: a text is unchanged, and any other value becomes JSON."""
    return {place: _as_text(facts[place]) for place in places}


def _as_text(fact: Any) -> str:
    return fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False, default=str)
