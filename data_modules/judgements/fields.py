"""Readers for the fields of a feedback line: each reader checks and returns a value.

Every reader raises ValueError with the error and what to write instead. The caller adds the name of the field.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from data_modules.judgements.ranking import format_ranking, letter, parse_ranking
from data_modules.judgements.schema import ROLES, Message, PromptText, Span, Step
from lightning_nlf.numbers import Number

Scale = tuple[Number, Number]
T = TypeVar("T")
# role in other programs → role to use instead
MEANT = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}
_QUOTED = re.compile(r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*(?:/\s*(\d{1,9})\s*)?")
_HALVES = re.compile("[\ud800-\udfff]")


def cut(text: str) -> str:
    """Cut a text to at most 60 characters, for an error message."""
    return text if len(text) <= 60 else f"{text[:59]}…"


def read_text(value: Any) -> str:
    """Read a text that is not empty or blank."""
    if not isinstance(value, str):
        raise ValueError(f"must be a text, is {kind_of(value)}")
    if not value or value.isspace():
        raise ValueError("the text is empty; leave out the field, or for a response the whole line")
    if not value.isascii() and _HALVES.search(value):
        raise ValueError("the text has half of a surrogate pair, which is not a character; remove it")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, is {kind_of(value)}{_number_hint(value)}")
    if abs(value) > 1e300 or not math.isfinite(value):
        raise ValueError(f"{value if isinstance(value, float) else 'the number'} is not finite, or too large")
    return float(value)


def _number_hint(value: Any) -> str:
    """Hint what to write for a number in quotes or a truth value; empty if the meaning is not clear."""
    if isinstance(value, bool):
        return "; write 1 or 0"
    parts = _QUOTED.fullmatch(value) if isinstance(value, str) else None
    if parts is None or parts[2] is not None and not int(parts[2]):
        return ""
    return f"; write {float(parts[1]) / int(parts[2] or 1):.6g}, without quotes"


def read_prompt(value: Any) -> PromptText:
    """Read a prompt, which is a text or messages."""
    if isinstance(value, list) and value:
        return tuple(_message(message, i) for i, message in enumerate(value, 1))
    return read_text(value)


def _message(value: Any, number: int) -> Message:
    form = '{"role": "user", "content": "…"}'
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        extra = sorted(set(value) - {"role", "content"}) if isinstance(value, dict) else []
        hint = f"; remove {cut(', '.join(extra))}" if extra else ""
        raise ValueError(f"message {number} must be {form}, with no other field{hint}")
    if value["role"] not in ROLES:
        role = MEANT.get(value["role"]) if isinstance(value["role"], str) else None
        hint = f"; write {role}" if role else ""
        raise ValueError(f"message {number}: role {cut(repr(value['role']))} is none of {', '.join(ROLES)}{hint}")
    if isinstance(value["content"], list):
        raise ValueError(f"message {number}: content: is a list of parts; join their texts into one text")
    try:
        return Message(value["role"], read_text(value["content"]))
    except ValueError as error:
        raise ValueError(f"message {number}: content: {error}") from None


def read_responses(value: Any) -> tuple[str, ...]:
    """Read a list of at least one text."""
    if not isinstance(value, list) or not value:
        raise ValueError(f'must be a list like ["…"] of at least one text, is {kind_of(value)}')
    return tuple(_for_response(i, len(value), read_text, text) for i, text in enumerate(value))


def read_score(value: Any, scale: Scale | None) -> float:
    """Read a number, which must be on the scale if a scale is given."""
    score = _number(value)
    if scale is not None and not scale[0] <= score <= scale[1]:
        digits = value if abs(value) < 1e15 else f"{score:g}"
        bounds = f"{scale[0]:g} to {scale[1]:g}"
        raise ValueError(f"{digits} is outside the scale {bounds}; correct it, or set another scale")
    return score


def read_ranking(value: Any, responses: tuple[str, ...]) -> str:
    """Read a ranking of all responses, and return it in the form of `format_ranking`."""
    return format_ranking(parse_ranking(read_text(value), len(some_responses(responses))))


def read_preference(value: Any, responses: tuple[str, ...]) -> float:
    """Read the probability that the first of two responses is better."""
    count = len(some_responses(responses))
    probability = _number(value)
    if count != 2:
        raise ValueError(f"compares two responses, A and B, and the line has {count}; give a ranking instead")
    if not 0 <= probability <= 1:
        raise ValueError(f"{probability:g} must be from 0 to 1; it is the probability that A is better than B")
    return probability


def read_spans(value: Any, response: str) -> tuple[Span, ...]:
    """Read ranges of characters in the response."""
    spans: list[Span] = []
    for start, end in _objects(value, "start", "end"):
        if not (start == int(start) and end == int(end) and 0 <= start < end <= len(response)):
            hint = "; count characters: an emoji is one, not two as in UTF-16" if astral(response) else ""
            size = f"the {len(response)} characters of the response"
            raise ValueError(f"{start:g} to {end:g} is not a range within {size}{hint}")
        spans.append(Span(int(start), int(end)))
    return tuple(spans)


def astral(text: str) -> bool:
    """Whether a text has a character, such as an emoji, that counts as two units in JavaScript and Java (UTF-16)."""
    return not text.isascii() and max(text) > "\uffff"


def read_steps(value: Any, response: str) -> tuple[Step, ...]:
    """Read the labelled steps of the response, in order, each with the character at which it ends."""
    steps: list[Step] = []
    for end, label in _objects(value, "end", "label"):
        before = steps[-1].end if steps else 0
        if not (end == int(end) and before < end <= len(response)):
            raise ValueError(
                f"end {end:g} must be above {before}, where the step before ended, "
                f"and at most {len(response)}, where the response ends"
            )
        steps.append(Step(int(end), label))
    return tuple(steps)


def _objects(value: Any, *names: str) -> Iterator[tuple[float, ...]]:
    """Yield the numbers with these names from each object in a list."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list of at least one object, is {kind_of(value)}")
    for item in value:
        if not isinstance(item, dict) or set(item) != set(names):
            raise ValueError("each must be {" + ", ".join(f'"{name}": …' for name in names) + "}, with no other field")
        yield tuple(_number(item[name]) for name in names)


def read_meta(value: Any, responses: int | None) -> dict[str, Any]:
    """Read an object of JSON values. Its `said_by` and `finished` must have the form that this package writes.

    Args: responses: the number of responses; None if unknown.
    """
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, is {kind_of(value)}")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from None
    if not text.isascii() and _HALVES.search(text):
        raise ValueError("has half of a surrogate pair, which is not a character; remove it")
    authors = value.get("said_by", {})
    if not isinstance(authors, dict) or not all(isinstance(name, str) for name in authors.values()):
        raise ValueError('said_by must be an object like {"score": "who"}')
    ends = value.get("finished", True)
    flags = ends if isinstance(ends, list) else [ends] * (responses or 1)
    if not all(isinstance(flag, bool) for flag in flags) or responses is not None and len(flags) != (responses or 1):
        raise ValueError("finished must be true or false, or a list of these with one for each response")
    return value


def of_each_response(
    value: Any, responses: tuple[str, ...], read: Callable[[Any, str], T], of_objects: bool = False
) -> tuple[T | None, ...]:
    """Read a value for each response from a list with null for missing values; one response needs no list.

    Args: read: reader of one value; of_objects: whether each value is itself a list of objects.
    """
    count = len(some_responses(responses))
    listed = isinstance(value, list) and not (of_objects and value and all(isinstance(x, dict) for x in value))
    if not listed and count == 1:
        return (read(value, responses[0]),)
    if not listed:
        raise ValueError(f"is a single value for {count} responses; give a list with one value or null for each")
    if len(value) != count:
        raise ValueError(f"is a list of {len(value)} for {count} responses; give one value or null for each")
    if all(x is None for x in value):
        raise ValueError("has only null; leave the field out")
    pairs = list(zip(value, responses, strict=True))
    return tuple(
        None if x is None else _for_response(i, count, read, x, response) for i, (x, response) in enumerate(pairs)
    )


def some_responses(responses: tuple[str, ...]) -> tuple[str, ...]:
    """The responses, if there are any.  Raises ValueError: a field is about responses, and there are none."""
    if not responses:
        raise ValueError("is about responses, and the line has none; add responses, or leave the field out")
    return responses


def _for_response(index: int, count: int, read: Callable[..., T], *args: Any) -> T:
    """Call `read`, and add the letter of the response to its errors."""
    try:
        return read(*args)
    except ValueError as error:
        raise ValueError(f"response {letter(index)}: {error}" if count > 1 else str(error)) from None


def kind_of(value: Any) -> str:
    """The type of a JSON value in words, for an error message."""
    names = {bool: "true or false", str: "a text", list: "a list", dict: "an object", type(None): "null"}
    if value == [] or value == {}:
        return f"empty {names[type(value)].split()[1]}"
    if isinstance(value, int) and abs(value) >= 1e15:
        return "a number"
    return f"the number {value}" if type(value) in (int, float) else names.get(type(value), type(value).__name__)
