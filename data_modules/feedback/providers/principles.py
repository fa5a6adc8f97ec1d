"""A constitution: what replies are criticised for, how they are revised, and by what they are compared."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Principle:
    """One of them, in words that a model is asked with (https://arxiv.org/abs/2212.08073, appendix C)."""

    name: str
    critique: str  # the critique request
    revision: str  # the revision request
    preference: str | None = None  # what is asked of two responses, to be answered with 1 or 2


def read_principles(path: str | Path) -> list[Principle]:
    """Those of a yaml, under `principles`.

    Raises:
        ValueError: no such file, none in it, one that has not its fields, two of a name.
    """
    if not Path(path).is_file():
        raise ValueError(f"principles: there is no file {path}")
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"principles: {path} is no yaml: {error}") from None
    listed = found.get("principles") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"principles: {path} has no list `principles`")
    principles = [_principle(each, f"principles: {path}, number {number}") for number, each in enumerate(listed, 1)]
    names = [principle.name for principle in principles]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"principles: {path} has two of the name {sorted(twice)[0]!r}")
    return principles


def _principle(each: object, where: str) -> Principle:
    known = [f.name for f in fields(Principle)]
    needed = known[:3]
    if not isinstance(each, dict) or not set(needed) <= set(each) <= set(known):
        raise ValueError(f"{where}: needs {', '.join(needed)}, may have {known[3]}, and nothing else")
    if not all(isinstance(text, str) and text.strip() for text in each.values()):
        raise ValueError(f"{where}: its fields are texts")
    return Principle(**{name: text.strip() for name, text in each.items()})
