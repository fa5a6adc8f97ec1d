"""Parse and check one line of a journal. Journals can come from other machines, versions and people."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

LAST_TIME = 253_402_300_799_999  # milliseconds; the end of the year 9999
_LARGEST = 2**63  # databases store only integers smaller than this

Check = tuple[Callable[[Any], bool], str]


class RecordError(ValueError):
    """A line is not a valid record of this version."""


def parse(line: bytes) -> dict[str, Any]:
    """Parse one line of a journal.

    Raises:
        RecordError: The line is not a valid record. The message gives the reason.
    """
    try:
        record = json.loads(line)
        if b"\\u" in line:  # no MLflow store accepts half of a surrogate pair
            json.dumps(record, ensure_ascii=False).encode()
    except RecursionError:
        raise RecordError("nested too deeply") from None
    except UnicodeEncodeError:
        raise RecordError("a text has half of a surrogate pair") from None
    except ValueError:  # also raised for an integer of more than 4,300 digits
        raise RecordError("not valid JSON") from None
    if not isinstance(record, dict):
        raise RecordError("not a JSON object")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise RecordError(f"kind is {_abbreviated(kind)}, not one of {', '.join(_FIELDS)}")
    needed = {"time": _TIME} | _FIELDS[kind]
    optional = _OPTIONAL if kind == "start" else {}
    for name, (is_right, expected) in (needed | optional).items():
        if name in needed and name not in record:
            raise RecordError(f"{kind}: {name} is missing")
        if (name in needed or record.get(name) is not None) and not is_right(record[name]):
            raise RecordError(f"{kind}: {name} is {_abbreviated(record[name])}, not {expected}")
    return record


def _abbreviated(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _whole(lowest: int, highest: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _is_metric(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("nan", "inf", "-inf")
    return isinstance(value, float) or (_is_number(value) and abs(value) < 2**1023)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII | re.DOTALL) is not None


def _object_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, dict) and all(map(is_right, values.values()))


_TIME: Check = (_whole(0, LAST_TIME), "milliseconds since 1970")
_TEXTS: Check = (_object_of(_text(".*")), "an object of texts")
_FIELDS: dict[str, dict[str, Check]] = {
    "start": {"journal": (_text(r"[\w.-]{1,64}"), "an identity of letters and digits")},
    "params": {"values": _TEXTS},
    "tags": {"values": _TEXTS},
    "metrics": {
        "step": (_whole(-_LARGEST, _LARGEST - 1), "a whole number of 64 bits"),
        "values": (_object_of(_is_metric), "an object of numbers"),
    },
    "artifact": {"path": (_text(r"[^\0]{1,4096}"), "a path")},
    "end": {"status": (lambda value: value in ("FINISHED", "FAILED", "KILLED"), "FINISHED, FAILED or KILLED")},
}
# Optional fields of a "start" record.
_OPTIONAL: dict[str, Check] = {
    **dict.fromkeys(("experiment", "run_name", "tracking_uri", "user", "source.name", "host"), (_text(".+"), "a text")),
    "pid": (_whole(1, 2**31 - 1), "a process id"),
    "process_started": (lambda value: _is_number(value) and math.isfinite(value), "seconds since 1970"),
}
