"""JSON of untrusted files: read strictly, and what is wrong is one sentence."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from data_modules.judgements.fields import cut
from data_modules.judgements.parsing import Faults

DIGITS = 4000  # of an integer that is read; Python refuses those of more than 4,300


def decoded(line: bytes) -> Any:
    """The value of a line, or of a whole file.

    Raises:
        Faults: not UTF-8, not JSON, a field that stands twice, brackets without end.
    """
    try:
        return json.loads(line.decode(), object_pairs_hook=_object, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise Faults([f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"]) from None
    except json.JSONDecodeError as error:
        place = f"column {error.colno}; one object a line" if error.lineno == 1 else f"line {error.lineno}"
        raise Faults([f"not JSON: {error.msg} at {place}"]) from None
    except RecursionError:
        raise Faults(["not JSON that anybody would write: brackets within brackets without end"]) from None


def _integer(digits: str) -> int | float:
    """Of more digits than Python reads it is infinite, and the field that has it says what is wrong."""
    return int(digits) if len(digits) < DIGITS else math.inf


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise Faults([f"{cut(twice)}: stands twice; keep one of the two"])
    return record
