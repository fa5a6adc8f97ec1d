"""Text templates with placeholders: "{prompt} answer : {response}"."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter


def refuse_template(name: str, template: str, needed: Sequence[str], allowed: Sequence[str] = ()) -> None:
    """Check the placeholders of a template.  Raises ValueError: a required one is missing, or one is unknown.

    Args: name: the setting that holds the template; needed, allowed: names of required and of optional placeholders.
    """
    places, names = places_of(name, template), [*needed, *allowed]
    if unknown := sorted(set(places) - set(names)):
        raise ValueError(f"{name}: unknown placeholder {{{unknown[0]}}}; use {_listed(names)}")
    if missing := [place for place in needed if place not in places]:
        raise ValueError(f"{name}: placeholder {_listed(missing)} is missing, so the text would be the same every time")


def places_of(name: str, template: str) -> list[str]:
    """The placeholders of a template, in order, without repetition.  Raises ValueError: braces do not match."""
    try:
        places = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ValueError(f"{name}: {error}; write {{{{ and }}}} for literal braces") from None
    return list(dict.fromkeys(places))


def _listed(places: Sequence[str]) -> str:
    return ", ".join(f"{{{place}}}" for place in places)
