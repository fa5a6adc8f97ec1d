"""Protocol of feedback providers: environments, rules and models that judge replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from data_modules.judgements.schema import Judgement


@dataclass
class Account:
    """The counters of a provider's run, and the judgements that the provider left out."""

    counters: dict[str, int] = field(default_factory=lambda: {"calls": 0})
    left_out: list[str] = field(default_factory=list)  # FILE:LINE, the missing field and the reason
    stopped: str | None = None  # reason for stopping early
    interrupted: bool = False  # whether Ctrl-C was the reason


class Provider(Protocol):
    """A source of feedback that fills in missing fields of judgements. Existing values are kept."""

    gives: tuple[str, ...]  # the fields of a judgement that it fills in

    def complete(self, judgements: Sequence[Judgement], tick: Callable[[], object]) -> tuple[list[Judgement], Account]:
        """Return the judgements in the same order with missing fields filled in where possible.

        Args: tick: function that is called after each judgement, for a progress bar.
        Raises:
            ValueError: an argument or the file has an error, so that no judgement can be completed.
        """
        ...


def with_answers(judgement: Judgement, by: str, **fields: Any) -> Judgement:
    """Set fields of a judgement, with `by` as their provider. None and unchanged values are ignored.

    `source` is the first provider. `meta.said_by` holds the provider of each field that a different provider filled in.
    """
    changed = {name: new for name, new in fields.items() if new is not None and new != getattr(judgement, name)}
    if not changed:
        return judgement
    if judgement.source in (None, by):
        return replace(judgement, source=by, **changed)
    meta = changed.pop("meta", judgement.meta)
    authors = meta.get("said_by", {}) | dict.fromkeys(changed, by)
    return replace(judgement, meta=meta | {"said_by": authors}, **changed)


def merged(old: Sequence[Any] | None, new: Sequence[Any]) -> tuple[Any, ...] | None:
    """The value of each response: the old value if it exists, else the new value; None if no response has a value."""
    values = tuple(b if a is None else a for a, b in zip(old or [None] * len(new), new, strict=True))
    return None if all(x is None for x in values) else values


def without(judgement: Judgement, fields: Sequence[str]) -> Judgement:
    """Remove these fields from a judgement, and the record of their providers."""
    authors = {name: by for name, by in judgement.meta.get("said_by", {}).items() if name not in fields}
    meta = {name: value for name, value in judgement.meta.items() if name != "said_by"}
    nothing: dict[str, Any] = dict.fromkeys(fields)
    cleared = replace(judgement, meta=meta | ({"said_by": authors} if authors else {}), **nothing)
    left = any(getattr(cleared, name) is not None for name in ANSWERS)
    return cleared if left else replace(cleared, source=None)


ANSWERS = ("score", "critique", "expected", "ranking", "preference", "spans", "steps")
