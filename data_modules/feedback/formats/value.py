"""JSON from other programs: typed access that names the field, and what of a record nobody read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data_modules.judgements.fields import cut, kind_of

_INDEX = re.compile(r"\[\d+\]")


@dataclass(frozen=True)
class Value:
    """A JSON value and where it stands in its record. False where it is null, NaN or not there.

    Every reader raises ValueError: the field, what it must be, and what it is.
    """

    json: Any
    path: str = ""
    used: set[str] = field(default_factory=set)  # paths that were read, with [] for each place in a list

    def __bool__(self) -> bool:
        return self.json is not None and self.json == self.json

    def __getitem__(self, name: str) -> Value:
        """A field of an object."""
        if not isinstance(self.json, dict):
            raise self.wrong("an object")
        return Value(self.json.get(name), f"{self.path}.{name}" if self.path else name, self.used)

    def __contains__(self, name: str) -> bool:
        return isinstance(self.json, dict) and self.json.get(name) is not None

    def fields(self) -> dict[str, Value]:
        """All fields of an object that have a value."""
        if not isinstance(self.json, dict):
            raise self.wrong("an object")
        return {name: self[name] for name in self.json if self[name]}

    def each(self) -> list[Value]:
        """The items of a list."""
        if not isinstance(self.json, list):
            raise self.wrong("a list")
        return [Value(item, f"{self.path}[{i}]", self.used) for i, item in enumerate(self.json)]

    def text(self) -> str:
        """A text, which may be empty."""
        if not isinstance(self.json, str):
            raise self.wrong("a text")
        return str(self.raw())

    def words(self) -> str | None:
        """A text; None where there is none, or it is blank."""
        text = self.text() if self else ""
        return text if text.strip() else None

    def name(self) -> str | None:
        """An id: a text, or a whole number written as one."""
        if isinstance(self.json, int) and not isinstance(self.json, bool):
            return str(self.raw())
        return self.words()

    def number(self) -> float:
        """A finite number."""
        if isinstance(self.json, bool) or not isinstance(self.json, int | float) or not math.isfinite(self.json):
            raise self.wrong("a number")
        return float(self.raw())

    def whole(self) -> int:
        """A whole number."""
        number = self.number()
        if number != int(number):
            raise self.wrong("a whole number")
        return int(number)

    def flag(self) -> bool:
        """True or false, also as 1 and 0, and as a text of a CSV file."""
        flags = {"true": True, "1": True, "false": False, "0": False}
        if str(self.json).lower() not in flags:
            raise self.wrong("true or false")
        return flags[str(self.raw()).lower()]

    def raw(self) -> Any:
        """The value as it is, which counts as read with all that is in it."""
        self.used.add(_INDEX.sub("[]", self.path))
        return self.json

    def wrong(self, wanted: str) -> ValueError:
        """The error that says what it must be."""
        state = f"must be {wanted}, is {kind_of(self.json)}" if self else f"is missing; it must be {wanted}"
        return ValueError(f"{cut(self.path) or 'the record'}: {state}")

    def unread(self) -> Iterator[str]:
        """The paths of what has a value that nobody read: the topmost ones."""
        above = {path[: match.start()] for path in self.used for match in re.finditer(r"\.|\[", path)}
        yield from _unread(self.json, self.path, self.used, above)


def _unread(json: Any, path: str, used: set[str], above: set[str]) -> Iterator[str]:
    if json is None or json in ("", [], {}) or path in used:
        return
    if isinstance(json, dict) and (not path or path in above):
        for name, item in json.items():
            yield from _unread(item, f"{path}.{name}" if path else name, used, above)
    elif isinstance(json, list) and f"{path}[]" in used | above:
        for item in json:
            yield from _unread(item, f"{path}[]", used, above)
    else:
        yield path
