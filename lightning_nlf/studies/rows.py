"""Runs of a report as JSON, column by column, and numbers that JSON lacks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lightning_nlf.studies.runs import Result, from_json
from lightning_nlf.studies.spec import COUNTERS, Study

NOT_FINITE = "float"  # {"float": "inf"} stands for a number that JSON lacks
DIGITS = 7  # significant digits of a number that is not whole
_TEXTS = ("failure", "machine", "commit")


def row(result: Result, study: Study) -> dict[str, Any]:
    """A run with what a report of this study needs of its validations, as columns.

    Numbers have seven significant digits. A value is not rounded across the threshold of a solved run. The columns are
    `value`, and those that the run has of all counters with a name in COUNTERS and all further metrics.
    """
    names = dict.fromkeys((*study.counters, *COUNTERS, *study.also))
    columns = {name: [point.counters.get(name) for point in result.points] for name in names}
    counters = {name: _column(values) for name, values in columns.items() if any(x is not None for x in values)}
    content = asdict(Result(**{**vars(result), "points": ()}))
    values = [_rounded_value(point.value, study) for point in result.points]
    return {**content, "seconds": rounded(result.seconds), "points": {"value": values, "counters": counters}}


def from_row(content: Mapping[str, Any]) -> Result:
    """The run of a row.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: It is not a row.
    """
    run, values = content["run"], content["points"]["value"]
    check(isinstance(run["arm"], str) and isinstance(run["stage"], str), "a run without the name of its arm and stage")
    check(isinstance(run["seed"], int) and isinstance(run["cell"], Mapping), "a run without a seed and a cell")
    check(
        all(isinstance(content.get(name, ""), str) for name in _TEXTS),
        "a run whose failure, machine or commit is not a text",
    )
    check(_is_number(content.get("seconds", 0.0)), "a run whose seconds are not a number")
    check(all(map(_is_number, values)), "a run with a value that is not a number")
    columns = {name: _values(column, len(values)) for name, column in content["points"]["counters"].items()}
    points = [
        {"value": float(value), "counters": {name: column[i] for name, column in columns.items() if i in column}}
        for i, value in enumerate(values)
    ]
    return from_json({**content, "points": points})


def check(holds: bool, text: str) -> None:
    """Raise ValueError with a text unless something holds."""
    if not holds:
        raise ValueError(text)


def _column(values: Sequence[float | None]) -> list[Any] | dict[str, Any]:
    """Values of a counter, null where it was not counted; {"from": 200, "by": 100} for 200, 300, 400 and so on."""
    numbers = [None if value is None else rounded(value) for value in values]
    whole = [number for number in numbers if isinstance(number, int)]
    if len(whole) == len(numbers) > 2:
        step = whole[1] - whole[0]
        if all(second - first == step for first, second in zip(whole, whole[1:], strict=False)):
            return {"from": whole[0], "by": step}
    return numbers


def _values(column: Any, length: int) -> dict[int, float]:
    """Values of a column by the number of their validation."""
    if isinstance(column, Mapping):
        first, step = column["from"], column["by"]
        check(isinstance(first, int) and isinstance(step, int), "a counter that is not a list of numbers")
        return {i: float(first + i * step) for i in range(length)}
    check(isinstance(column, list) and len(column) == length, "a counter with too few or too many values")
    check(all(x is None or _is_number(x) for x in column), "a counter with a value that is not a number")
    return {i: float(x) for i, x in enumerate(column) if x is not None}


def _is_number(x: object) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _rounded_value(value: float, study: Study) -> Any:
    number = rounded(value)
    if study.solved is None or not math.isfinite(value):
        return number
    end = study.solved.threshold
    return number if (number >= end, number <= end) == (value >= end, value <= end) else value


def rounded(x: Any) -> Any:
    """Content with seven significant digits in each float; whole numbers stay exact and become int."""
    if isinstance(x, Mapping):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [rounded(value) for value in x]
    if not isinstance(x, float) or not math.isfinite(x):
        return x
    return int(x) if x.is_integer() and abs(x) < 2**53 else float(f"{x:.{DIGITS}g}")


def dumps(content: Any) -> str:
    """JSON without NaN and Infinity, which many readers refuse.

    There is one line per entry of the outer object, and one per run or other mapping in a list of these.
    """
    if not isinstance(content, Mapping):
        return _line(content)
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in content.items()) + "\n}\n"


def _lines(value: Any) -> str:
    if isinstance(value, list | tuple) and value and all(isinstance(entry, Mapping) for entry in value):
        return "[\n" + ",\n".join(map(_line, value)) + "\n]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":"))


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
