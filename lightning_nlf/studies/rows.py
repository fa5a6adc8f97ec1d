"""Runs of a report as JSON, column by column, and numbers that JSON lacks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning_nlf.studies.runs import Result, from_json

NOT_FINITE = "float"  # {"float": "inf"} stands for a number that JSON lacks


def row(result: Result) -> dict[str, Any]:
    """A run with its validations as columns: `value`, and one per counter with null where it was not counted."""
    names = dict.fromkeys(name for point in result.points for name in point.counters)
    columns: dict[str, list[float | None]] = {
        name: [point.counters.get(name) for point in result.points] for name in names
    }
    content = asdict(Result(**{**vars(result), "points": ()}))
    return {**content, "points": {"value": [point.value for point in result.points], "counters": columns}}


def from_row(content: Mapping[str, Any]) -> Result:
    columns = content["points"]["counters"]
    points = [
        {"value": value, "counters": {name: column[i] for name, column in columns.items() if column[i] is not None}}
        for i, value in enumerate(content["points"]["value"])
    ]
    return from_json({**content, "points": points})


def dumps(content: Any) -> str:
    """JSON without NaN and Infinity, which many readers refuse; one line per entry of the outer object."""
    if not isinstance(content, Mapping):
        return json.dumps(plain(content), allow_nan=False)
    lines = [f"{json.dumps(key)}: {json.dumps(plain(value), allow_nan=False)}" for key, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def loads(text: str) -> Any:
    return json.loads(text, object_hook=_number)


def plain(x: Any) -> Any:
    """Value for JSON, with {"float": "nan"} for NaN and the same for infinity."""
    if isinstance(x, Mapping):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    return {NOT_FINITE: str(float(x))} if isinstance(x, float) and not math.isfinite(x) else x


def _number(content: dict[str, Any]) -> Any:
    marked = content.keys() == {NOT_FINITE} and content[NOT_FINITE] in ("nan", "inf", "-inf")
    return float(content[NOT_FINITE]) if marked else content
