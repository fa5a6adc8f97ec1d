"""Strict JSON reader for untrusted files. Every error is one sentence."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from data_modules.judgements.fields import cut
from data_modules.judgements.parsing import Faults

DIGITS = 4000  # maximum length of an integer; Python refuses more than 4,300


def decoded(line: bytes) -> Any:
    """Parse the JSON value of a line, or of a whole file.

    Raises:
        Faults: the text is not UTF-8 or not JSON, a field occurs twice, or brackets are nested too deeply.
    """
    try:
        return json.loads(line.decode(), object_pairs_hook=_object, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise Faults([f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"]) from None
    except json.JSONDecodeError as error:
        place = f"column {error.colno}; one object per line" if error.lineno == 1 else f"line {error.lineno}"
        raise Faults([f"not JSON: {error.msg} at {place}"]) from None
    except RecursionError:
        raise Faults(["not JSON: the brackets are nested too deeply"]) from None


def _integer(digits: str) -> int | float:
    """Parse an integer; one that is too long for Python becomes infinity, which the field's reader then refuses."""
    return int(digits) if len(digits) < DIGITS else math.inf


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise Faults([f"{cut(twice)}: occurs twice; keep one of the two"])
    return record
