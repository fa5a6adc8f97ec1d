"""A mapping in the yaml of a study: its values by type, and errors that give the key, file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_nlf.cli.errors import ConfigurationError, nearest
from lightning_nlf.cli.yaml_places import Place
from lightning_nlf.terminal import printable

_SHORT = 60  # characters of a value in a message


@dataclass(frozen=True)
class Section:
    """A mapping of the yaml.

    Args:
        value: Its content.
        path: Dotted keys down to it; empty for the whole yaml.
        file: Name of the file, for messages.
        lines: Line of each dotted key of the file.
    """

    value: Mapping[str, Any]
    path: str
    file: str
    lines: Mapping[str, int]

    @classmethod
    def whole(cls, value: Mapping[Any, Any], file: str, places: Iterable[Place]) -> Section:
        section = cls({}, "", file, {place.name: place.line for place in reversed(list(places))})
        return Section(section._with_names(value), "", file, section.lines)

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def error(self, key: str, text: str) -> ConfigurationError:
        """The error that a key is wrong, with its line, or else the line of what contains it."""
        name = f"{self.path}.{key}".strip(".")
        above = name
        while above and above not in self.lines:
            above = above.rpartition(".")[0]
        place = f"{self.file}, line {self.lines[above]}" if above else self.file
        return ConfigurationError(printable(f"{name} ({place}): {text}" if name else f"{place}: {text}"))

    def expected(self, key: str, text: str) -> ConfigurationError:
        return self.error(key, f"expected {text}, got {described(self.value.get(key))}")

    def allow(self, keys: Iterable[str], name: str = "key") -> None:
        """Refuse every key that is not one of `keys`."""
        keys = list(keys)
        for key in self.value:
            if key not in keys:
                hint = nearest(key, keys) or f"There are {', '.join(keys)}."
                raise self.error(key, f"no such {name}. {hint}")

    def section(self, key: str, text: str = "keys with values") -> Section:
        """A mapping below; empty if the key is missing or null."""
        value = self.value.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.expected(key, text)
        below = Section({}, f"{self.path}.{key}".strip("."), self.file, self.lines)
        return Section(below._with_names(value or {}), below.path, self.file, self.lines)

    def text(self, key: str, text: str) -> str:
        if not isinstance(self.value.get(key), str) or not self.value[key].strip():
            raise self.expected(key, text) if key in self else self.error(key, f"missing; write {key}: {text}")
        return self.value[key]

    def texts(self, key: str, text: str) -> tuple[str, ...]:
        """A list of strings; empty if the key is missing."""
        if key not in self:
            return ()
        values = self.value[key]
        if not isinstance(values, list) or not values or not all(isinstance(x, str) and x.strip() for x in values):
            raise self.expected(key, text)
        return tuple(values)

    def choice(self, key: str, names: tuple[str, ...], default: str) -> str:
        value = self.value.get(key, default)
        if value not in names:
            hint = nearest(value, names) if isinstance(value, str) else ""
            raise self.error(key, f"expected one of {', '.join(names)}, got {described(value)}. {hint}".rstrip(" "))
        return value

    def count(self, key: str, default: int) -> int:
        """A whole number of at least 1."""
        value = self.value.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise self.expected(key, "a whole number of at least 1")
        return value

    def number(self, key: str, text: str = "a number") -> float:
        value = self.value.get(key)
        if value is None or not is_number(value):
            raise self.expected(key, text)
        return value

    def values(self, key: str) -> dict[str, Any]:
        """Values by dotted key, which `fit` will read as JSON."""
        below = self.section(key, "dotted keys with values, such as {model.lr: 0.01}")
        for name in below.value:
            below.check_value(name)
        return dict(below.value)

    def check_value(self, key: str) -> None:
        """Refuse a value that JSON cannot represent: a date, NaN, an infinity, a key that is a number."""
        try:
            representable = json.loads(json.dumps(self.value[key], allow_nan=False)) == self.value[key]
        except (TypeError, ValueError):
            representable = False
        if not representable:
            raise self.expected(key, "numbers, strings, true, false, null, and lists and mappings of these")

    def _with_names(self, value: Mapping[Any, Any]) -> dict[str, Any]:
        """The mapping with strings as keys: a setting may be called 50."""
        for key in value:
            if not isinstance(key, str) and (isinstance(key, bool) or not isinstance(key, int)):
                raise self.error("", f"the key {described(key)} is not a name; write it in quotes")
        return {str(key): content for key, content in value.items()}


def described(value: object) -> str:
    """A value in a message, cut to one line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Mapping():
            return "a mapping"
        case list():
            return "a list" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}…"


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
