"""From a line of a feedback file to a judgement, or to all that is wrong with it."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from data_modules.feedback.ranking import format_ranking, letter, parse_ranking
from data_modules.feedback.schema import FIELDS, ROLES, Judgement, Message, Span, Step
from lightning_nlf.numbers import Number

Scale = tuple[Number, Number]
T = TypeVar("T")


class Faults(ValueError):
    """All that is wrong with one line: `faults`, each naming the field and the mend."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def parse(record: Any, scale: Scale | None = None, where: str = "") -> Judgement:
    """The judgement in one line of a file. A field that is null is missing.

    Args: scale: lowest and highest score there is; None: any number.
    Raises:
        Faults: whatever is wrong.
    """
    if not isinstance(record, dict):
        raise Faults([f'a line is an object like {{"prompt": …}}, not {_kind(record)}'])
    if not {"responses", "expected"} & record.keys():
        for name, (form, mend) in FORMATS.items():
            if name in record:
                raise Faults([f"{name}: this line is of {form}; write {mend}"])
    faults = [_unknown(name) for name in record if name not in FIELDS]
    known: dict[str, Any] = {}

    def take(name: str, read: Callable[[Any], Any]) -> None:
        if record.get(name) is not None:
            try:
                _refuse_deep(record[name])
                known[name] = read(record[name])
            except ValueError as error:
                faults.append(f"{name}: {error}")

    take("prompt", _prompt)
    if record.get("prompt") is None:
        faults.append("prompt: is missing; every line needs one")
    take("responses", _responses)
    take("expected", _text)
    if record.get("responses") is None and record.get("expected") is None:
        faults.append("responses: there are none and no expected either; give at least one of the two")
    if "responses" in known or record.get("responses") is None:
        responses = known.get("responses", ())
        take("score", lambda value: _each(value, responses, lambda x, _: _score(x, scale)))
        take("critique", lambda value: _each(value, responses, lambda x, _: _text(x)))
        take("ranking", lambda value: format_ranking(parse_ranking(_text(value), len(_some(responses)))))
        take("preference", lambda value: _preference(value, len(_some(responses))))
        take("spans", lambda value: _each(value, responses, _spans, of_objects=True))
        take("steps", lambda value: _each(value, responses, _steps, of_objects=True))
    for name in ("source", "episode", "id"):
        take(name, _text)
    take("meta", lambda value: _meta(value, len(known.get("responses", ())) if "responses" in known else None))
    if faults:
        raise Faults(faults)
    return Judgement(**known, where=where)


FORMATS = {  # a field that tells another program's format → its name, and what to write instead
    "messages": ("OpenAI's format", "the messages before the answer as prompt, and the answer as expected"),
    "conversations": ("ShareGPT's format", "the turns before the answer as prompt, and the answer as expected"),
    "chosen": ("TRL's format of pairs", '"responses": [chosen, rejected], "ranking": "A > B"'),
    "rejected": ("TRL's format of pairs", '"responses": [chosen, rejected], "ranking": "A > B"'),
    "completion": ("TRL's format", "the completion as expected; where a label judges it, as responses with a score"),
    "instruction": ("Alpaca's format", "instruction and input as prompt, and the output as expected"),
}
DEPTH = 32  # brackets within brackets that a field may have


def _refuse_deep(value: Any) -> None:
    level, depth = [value], 0
    while level := [x for each in level for x in _parts(each)]:
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"brackets stand within brackets, more than {DEPTH} deep; make it flatter")


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def cut(text: str) -> str:
    """At most 60 characters, for a message."""
    return text if len(text) <= 60 else f"{text[:59]}…"


def _unknown(name: str) -> str:
    name = cut(name)
    near = difflib.get_close_matches(name, FIELDS, 1)
    return f"{name}: unknown field; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(FIELDS)}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a text, is {_kind(value)}")
    if not value or value.isspace():
        raise ValueError("the text is empty; leave the field out, or the line if this is a response")
    if not value.isascii() and _HALVES.search(value):
        raise ValueError("the text has half of a surrogate pair, which is no character; take it out")
    return value


_HALVES = re.compile("[\ud800-\udfff]")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, is {_kind(value)}{_meant(value)}")
    if abs(value) > 1e300 or not math.isfinite(value):
        raise ValueError(f"{value if isinstance(value, float) else 'so large a number'} is no number to learn from")
    return float(value)


def _meant(value: Any) -> str:
    """The number that a text or a truth value stands for, if that is plain."""
    if isinstance(value, bool):
        return "; write 1 or 0"
    parts = (
        re.fullmatch(r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*(?:/\s*(\d{1,9})\s*)?", value) if isinstance(value, str) else None
    )
    if parts is None or parts[2] is not None and not int(parts[2]):
        return ""
    return f"; write {float(parts[1]) / int(parts[2] or 1):.6g}, without quotes"


def _prompt(value: Any) -> str | tuple[Message, ...]:
    return tuple(_message(m, i) for i, m in enumerate(value, 1)) if isinstance(value, list) and value else _text(value)


MEANT = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}


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
        return Message(value["role"], _text(value["content"]))
    except ValueError as error:
        raise ValueError(f"message {number}: content: {error}") from None


def _responses(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f'must be a list like ["…"] of at least one text, is {_kind(value)}')
    return tuple(_named(i, len(value), _text, text) for i, text in enumerate(value))


def _score(value: Any, scale: Scale | None) -> float:
    score = _number(value)
    if scale is not None and not scale[0] <= score <= scale[1]:
        digits = value if abs(value) < 1e15 else f"{score:g}"
        raise ValueError(f"{digits} is off the scale {scale[0]:g} to {scale[1]:g}; mend it, or declare another scale")
    return score


def _preference(value: Any, responses: int) -> float:
    probability = _number(value)
    if responses != 2:
        raise ValueError(f"is of A against B, and the number of responses is {responses}; give a ranking instead")
    if not 0 <= probability <= 1:
        raise ValueError(f"{probability:g} is no probability that A is better than B; it must be in 0 to 1")
    return probability


def _spans(value: Any, response: str) -> tuple[Span, ...]:
    return tuple(_span(item, response) for item in _objects(value))


def _span(item: Any, response: str) -> Span:
    start, end = _numbers(item, "start", "end")
    if not (start == int(start) and end == int(end) and 0 <= start < end <= len(response)):
        hint = "; characters count, and an emoji is one, not two as in UTF-16" if astral(response) else ""
        raise ValueError(
            f"{start:g} to {end:g} is no range within the {len(response)} characters of the response{hint}"
        )
    return Span(int(start), int(end))


def astral(text: str) -> bool:
    """Whether a character, such as an emoji, is two units of UTF-16, as JavaScript and Java count."""
    return not text.isascii() and max(text) > "\uffff"


def _steps(value: Any, response: str) -> tuple[Step, ...]:
    steps: list[Step] = []
    for item in _objects(value):
        end, label = _numbers(item, "end", "label")
        before = steps[-1].end if steps else 0
        if not (end == int(end) and before < end <= len(response)):
            raise ValueError(
                f"end {end:g} is no character above {before}, where the last step ended, "
                f"and up to {len(response)}, where the response ends"
            )
        steps.append(Step(int(end), label))
    return tuple(steps)


def _objects(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list of at least one object, is {_kind(value)}")
    return value


def _numbers(item: Any, *names: str) -> tuple[float, ...]:
    if not isinstance(item, dict) or set(item) != set(names):
        raise ValueError("each must be {" + ", ".join(f'"{name}": …' for name in names) + "}, with no other field")
    return tuple(_number(item[name]) for name in names)


def _meta(value: Any, responses: int | None) -> dict[str, Any]:
    """Args: responses: how many there are; None where that is not known."""
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, is {_kind(value)}")
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


def _each(
    value: Any, responses: tuple[str, ...], read: Callable[[Any, str], T], of_objects: bool = False
) -> tuple[T | None, ...]:
    """A value for each response: a list as long as they are, null where there is none; of a lone one without a list.

    Args: of_objects: a value is itself a list of objects.
    """
    count = len(_some(responses))
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
    return tuple(None if x is None else _named(i, count, read, x, own) for i, (x, own) in enumerate(pairs))


def _some(responses: tuple[str, ...]) -> tuple[str, ...]:
    if not responses:
        raise ValueError("there is no response that it could be about; add responses, or leave it out")
    return responses


def _named(index: int, count: int, read: Callable[..., T], *args: Any) -> T:
    """What `read` makes of it; what is wrong is said of the response by its letter."""
    try:
        return read(*args)
    except ValueError as error:
        raise ValueError(f"of response {letter(index)}: {error}" if count > 1 else str(error)) from None


def _kind(value: Any) -> str:
    names = {bool: "true or false", str: "a text", list: "a list", dict: "an object", type(None): "null"}
    if value == [] or value == {}:
        return f"empty {names[type(value)].split()[1]}"
    number = (
        f"the number {value}"
        if isinstance(value, float) or isinstance(value, int) and abs(value) < 1e15
        else "a number"
    )
    return names.get(type(value), number if isinstance(value, int | float) else type(value).__name__)
