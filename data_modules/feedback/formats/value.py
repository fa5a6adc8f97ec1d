"""Typed access to untrusted JSON. Errors name the field, and unread fields are tracked."""

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
    """A JSON value with its path in the record. The value is falsy if it is null, NaN or missing.

    Every reader method raises ValueError with the field, the required type and the actual type.
    """

    json: Any
    path: str = ""
    used: set[str] = field(default_factory=set)  # paths of values that were read, with [] for each list index

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

    def elements(self) -> list[Value]:
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
        """A text; None if the value is missing or blank."""
        text = self.text() if self else ""
        return text if text.strip() else None

    def name(self) -> str | None:
        """An id as text; a whole number is converted."""
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
        """A truth value, which may be given as 1 or 0, or as a text in a CSV file."""
        flags = {"true": True, "1": True, "false": False, "0": False}
        if str(self.json).lower() not in flags:
            raise self.wrong("true or false")
        return flags[str(self.raw()).lower()]

    def raw(self) -> Any:
        """The unconverted value. The value and everything in it count as read."""
        self.used.add(_INDEX.sub("[]", self.path))
        return self.json

    def wrong(self, expected: str) -> ValueError:
        """An error with the expected and the actual type."""
        state = f"must be {expected}, is {kind_of(self.json)}" if self else f"is missing; it must be {expected}"
        return ValueError(f"{cut(self.path) or 'the record'}: {state}")

    def unread(self) -> Iterator[str]:
        """Yield the topmost paths of values that were not read."""
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
