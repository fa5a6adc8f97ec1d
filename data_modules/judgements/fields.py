"""The fields of a feedback line: what each must be, and what is wrong where it is not.

Every reader raises ValueError with the fault and what to write instead; the field is named by the caller.
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
# roles of other programs
MEANT = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}
_QUOTED = re.compile(r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*(?:/\s*(\d{1,9})\s*)?")
_HALVES = re.compile("[\ud800-\udfff]")


def cut(text: str) -> str:
    """At most 60 characters, for a message."""
    return text if len(text) <= 60 else f"{text[:59]}…"


def read_text(value: Any) -> str:
    """A text that is neither empty nor blank."""
    if not isinstance(value, str):
        raise ValueError(f"must be a text, is {kind_of(value)}")
    if not value or value.isspace():
        raise ValueError("the text is empty; leave the field out, or the line if this is a response")
    if not value.isascii() and _HALVES.search(value):
        raise ValueError("the text has half of a surrogate pair, which is no character; take it out")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, is {kind_of(value)}{_meant(value)}")
    if abs(value) > 1e300 or not math.isfinite(value):
        raise ValueError(f"{value if isinstance(value, float) else 'so large a number'} is no number to learn from")
    return float(value)


def _meant(value: Any) -> str:
    """The number that a text or a truth value stands for, if that is plain."""
    if isinstance(value, bool):
        return "; write 1 or 0"
    parts = _QUOTED.fullmatch(value) if isinstance(value, str) else None
    if parts is None or parts[2] is not None and not int(parts[2]):
        return ""
    return f"; write {float(parts[1]) / int(parts[2] or 1):.6g}, without quotes"


def read_prompt(value: Any) -> PromptText:
    """A text, or messages."""
    if isinstance(value, list) and value:
        return tuple(_message(message, i) for i, message in enumerate(value, 1))
    return read_text(value)


def _message(value: Any, number: int) -> Message:
    form = '{"role": "user", "content": "…"}'
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        other = sorted(set(value) - {"role", "content"}) if isinstance(value, dict) else []
        which = f"; take {cut(', '.join(other))} out" if other else ""
        raise ValueError(f"message {number} must be {form}, with no other field{which}")
    if value["role"] not in ROLES:
        meant = MEANT.get(value["role"]) if isinstance(value["role"], str) else None
        mend = f"; write {meant}" if meant else ""
        raise ValueError(f"message {number}: role {cut(repr(value['role']))} is none of {', '.join(ROLES)}{mend}")
    if isinstance(value["content"], list):
        raise ValueError(f"message {number}: content: is a list of parts; join their texts to one")
    try:
        return Message(value["role"], read_text(value["content"]))
    except ValueError as error:
        raise ValueError(f"message {number}: content: {error}") from None


def read_responses(value: Any) -> tuple[str, ...]:
    """A list of at least one text."""
    if not isinstance(value, list) or not value:
        raise ValueError(f'must be a list like ["…"] of at least one text, is {kind_of(value)}')
    return tuple(_named(i, len(value), read_text, text) for i, text in enumerate(value))


def read_score(value: Any, scale: Scale | None) -> float:
    """A number on the scale, if one is declared."""
    score = _number(value)
    if scale is not None and not scale[0] <= score <= scale[1]:
        digits = value if abs(value) < 1e15 else f"{score:g}"
        raise ValueError(f"{digits} is off the scale {scale[0]:g} to {scale[1]:g}; mend it, or declare another scale")
    return score


def read_ranking(value: Any, responses: tuple[str, ...]) -> str:
    """An order of all responses, as `format_ranking` writes it."""
    return format_ranking(parse_ranking(read_text(value), len(some_responses(responses))))


def read_preference(value: Any, responses: tuple[str, ...]) -> float:
    """The probability that the first of two responses is better."""
    count = len(some_responses(responses))
    probability = _number(value)
    if count != 2:
        raise ValueError(f"is of A against B, and the number of responses is {count}; give a ranking instead")
    if not 0 <= probability <= 1:
        raise ValueError(f"{probability:g} is no probability that A is better than B; it must be in 0 to 1")
    return probability


def read_spans(value: Any, response: str) -> tuple[Span, ...]:
    """Ranges of characters of the response."""
    spans: list[Span] = []
    for start, end in _objects(value, "start", "end"):
        if not (start == int(start) and end == int(end) and 0 <= start < end <= len(response)):
            hint = "; characters count, and an emoji is one, not two as in UTF-16" if astral(response) else ""
            size = f"the {len(response)} characters of the response"
            raise ValueError(f"{start:g} to {end:g} is no range within {size}{hint}")
        spans.append(Span(int(start), int(end)))
    return tuple(spans)


def astral(text: str) -> bool:
    """Whether a character, such as an emoji, is two units of UTF-16, as JavaScript and Java count."""
    return not text.isascii() and max(text) > "\uffff"


def read_steps(value: Any, response: str) -> tuple[Step, ...]:
    """Labelled steps: where each ends in the response, in order."""
    steps: list[Step] = []
    for end, label in _objects(value, "end", "label"):
        before = steps[-1].end if steps else 0
        if not (end == int(end) and before < end <= len(response)):
            raise ValueError(
                f"end {end:g} is no character above {before}, where the last step ended, "
                f"and up to {len(response)}, where the response ends"
            )
        steps.append(Step(int(end), label))
    return tuple(steps)


def _objects(value: Any, *names: str) -> Iterator[tuple[float, ...]]:
    """The numbers by these names of each object in a list."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list of at least one object, is {kind_of(value)}")
    for item in value:
        if not isinstance(item, dict) or set(item) != set(names):
            raise ValueError("each must be {" + ", ".join(f'"{name}": …' for name in names) + "}, with no other field")
        yield tuple(_number(item[name]) for name in names)


def read_meta(value: Any, responses: int | None) -> dict[str, Any]:
    """An object that JSON can hold, with `said_by` and `finished` as the product writes them.

    Args: responses: how many there are; None where that is not known.
    """
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, is {kind_of(value)}")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from None
    if not text.isascii() and _HALVES.search(text):
        raise ValueError("has half of a surrogate pair, which is no character; take it out")
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
    """A value for each response: a list as long as they are, null where there is none; of a lone one without a list.

    Args: of_objects: a value is itself a list of objects.
    """
    count = len(some_responses(responses))
    listed = isinstance(value, list) and not (of_objects and value and all(isinstance(x, dict) for x in value))
    if not listed and count == 1:
        return (read(value, responses[0]),)
    if not listed:
        raise ValueError(f"is one for {count} responses; give a list with one for each, null where there is none")
    if len(value) != count:
        raise ValueError(f"is a list of {len(value)} for {count} responses; give one for each, null where none is")
    if all(x is None for x in value):
        raise ValueError("has nothing but null; leave the field out")
    pairs = list(zip(value, responses, strict=True))
    return tuple(None if x is None else _named(i, count, read, x, response) for i, (x, response) in enumerate(pairs))


def some_responses(responses: tuple[str, ...]) -> tuple[str, ...]:
    """The responses. Raises ValueError: there are none that a field could be about."""
    if not responses:
        raise ValueError("there is no response that it could be about; add responses, or leave it out")
    return responses


def _named(index: int, count: int, read: Callable[..., T], *args: Any) -> T:
    """What `read` makes of it; what is wrong is said of the response by its letter."""
    try:
        return read(*args)
    except ValueError as error:
        raise ValueError(f"of response {letter(index)}: {error}" if count > 1 else str(error)) from None


def kind_of(value: Any) -> str:
    """The type of a JSON value in words, for a message."""
    names = {bool: "true or false", str: "a text", list: "a list", dict: "an object", type(None): "null"}
    if value == [] or value == {}:
        return f"empty {names[type(value)].split()[1]}"
    if isinstance(value, int) and abs(value) >= 1e15:
        return "a number"
    return f"the number {value}" if type(value) in (int, float) else names.get(type(value), type(value).__name__)
