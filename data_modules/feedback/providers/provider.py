"""Whoever says something of replies: one protocol for environments, rules, models and people's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from data_modules.judgements.schema import Judgement


@dataclass
class Account:
    """What was asked, and what was left out."""

    counters: dict[str, int] = field(default_factory=lambda: {"calls": 0})
    left_out: list[str] = field(default_factory=list)  # FILE:LINE, what is missing and why
    stopped: str | None = None  # why it stopped before the end
    interrupted: bool = False  # whether that was Ctrl-C


class Provider(Protocol):
    """Completes judgements: fills in what is missing of the fields it gives, and leaves what is there."""

    gives: tuple[str, ...]  # fields of a judgement

    def complete(self, judgements: Sequence[Judgement], tick: Callable[[], object]) -> tuple[list[Judgement], Account]:
        """The same judgements in the same order, each with as much as could be said; parts may stay missing.

        Args: tick: called when one is done.
        Raises:
            ValueError: a knob or a file that is wrong, so that nothing can be said at all.
        """
        ...


def said(judgement: Judgement, by: str, **fields: Any) -> Judgement:
    """With these fields; who repeats what is there, or says None, has said nothing.

    `source` is who spoke first; of the fields of anybody else `meta.said_by` tells whose they are.
    """
    given = {name: new for name, new in fields.items() if new is not None and new != getattr(judgement, name)}
    if not given:
        return judgement
    if judgement.source in (None, by):
        return replace(judgement, source=by, **given)
    meta = given.pop("meta", judgement.meta)
    told = meta.get("said_by", {}) | dict.fromkeys(given, by)
    return replace(judgement, meta=meta | {"said_by": told}, **given)


def merged(old: Sequence[Any] | None, new: Sequence[Any]) -> tuple[Any, ...] | None:
    """A value for each response, the old one where there is one; None if there is none at all."""
    both = tuple(b if a is None else a for a, b in zip(old or [None] * len(new), new, strict=True))
    return None if all(x is None for x in both) else both


def without(judgement: Judgement, fields: Sequence[str]) -> Judgement:
    """As if nobody had said these."""
    told = {name: by for name, by in judgement.meta.get("said_by", {}).items() if name not in fields}
    meta = {name: value for name, value in judgement.meta.items() if name != "said_by"}
    nothing: dict[str, Any] = dict.fromkeys(fields)
    cleared = replace(judgement, meta=meta | ({"said_by": told} if told else {}), **nothing)
    left = any(getattr(cleared, name) is not None for name in ANSWERS)
    return cleared if left else replace(cleared, source=None)


ANSWERS = ("score", "critique", "expected", "ranking", "preference", "spans", "steps")
