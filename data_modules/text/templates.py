"""Texts with places to be filled in: "{prompt} answer : {response}"."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter


def refuse_template(name: str, template: str, needed: Sequence[str], allowed: Sequence[str] = ()) -> None:
    """Raises ValueError for a template without a place it needs, or with one that nothing is known for.

    Args: name: the knob it came in by; needed, allowed: the names of places.
    """
    places, known = places_of(name, template), [*needed, *allowed]
    if unknown := sorted(set(places) - set(known)):
        raise ValueError(f"{name}: it has the place {{{unknown[0]}}}; there are {_listed(known)}")
    if missing := [place for place in needed if place not in places]:
        raise ValueError(f"{name}: it has no place {_listed(missing)}, so it would say the same whatever the case is")


def places_of(name: str, template: str) -> list[str]:
    """The names of the places of a template, in order, each once.  Raises ValueError: braces that do not match."""
    try:
        places = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ValueError(f"{name}: {error}; write {{{{ and }}}} for braces that are meant") from None
    return list(dict.fromkeys(places))


def _listed(places: Sequence[str]) -> str:
    return ", ".join(f"{{{place}}}" for place in places)
