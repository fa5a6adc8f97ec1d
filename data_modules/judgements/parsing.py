"""Parse a line of a feedback file into a judgement, or list all errors in the line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from data_modules.judgements import fields
from data_modules.judgements.fields import Scale, cut, of_each_response, read_text
from data_modules.judgements.schema import FIELDS, Judgement

FORMATS = {  # field in a different program's format → name of the format, and what to write instead
    "messages": ("OpenAI's format", "the messages before the answer as prompt, and the answer as expected"),
    "conversations": ("ShareGPT's format", "the turns before the answer as prompt, and the answer as expected"),
    "chosen": ("TRL's format of pairs", '"responses": [chosen, rejected], "ranking": "A > B"'),
    "rejected": ("TRL's format of pairs", '"responses": [chosen, rejected], "ranking": "A > B"'),
    "completion": ("TRL's format", "the completion as expected; where a label judges it, as responses with a score"),
    "instruction": ("Alpaca's format", "instruction and input as prompt, and the output as expected"),
}
CONVERTED = ("messages", "conversations", "chosen", "rejected", "completion")
CONVERT = "; or convert the whole file: python -m data_modules.feedback convert --help"
DEPTH = 32  # maximum nesting of brackets in a field


class Faults(ValueError):
    """All errors in one line. Each of `faults` gives the field and what to do."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def parse(record: Any, scale: Scale | None = None, where: str = "") -> Judgement:
    """Parse one line of a feedback file. A field that is null counts as missing.

    Args: scale: lowest and highest possible score; None = any number.
    Raises:
        Faults: all errors in the line.
    """
    if not isinstance(record, dict):
        raise Faults([f'a line must be an object like {{"prompt": …}}, is {fields.kind_of(record)}'])
    if not {"responses", "expected"} & record.keys():
        for name, (form, remedy) in FORMATS.items():
            if name in record:
                raise Faults([f"{name}: this line is in {form}; write {remedy}{CONVERT if name in CONVERTED else ''}"])
    faults = [unknown_field(name) for name in record if name not in FIELDS]
    values: dict[str, Any] = {}

    def take(name: str, read: Callable[[Any], Any]) -> None:
        if record.get(name) is not None:
            try:
                _refuse_deep(record[name])
                values[name] = read(record[name])
            except ValueError as error:
                faults.append(f"{name}: {error}")

    take("prompt", fields.read_prompt)
    if record.get("prompt") is None:
        faults.append("prompt: is missing; every line needs one")
    take("responses", fields.read_responses)
    take("expected", read_text)
    if record.get("responses") is None and record.get("expected") is None:
        faults.append("responses: are missing, and so is expected; give at least one of the two")
    readable = "responses" in values or record.get("responses") is None
    if readable:
        responses = values.get("responses", ())
        take("score", lambda value: of_each_response(value, responses, lambda x, _: fields.read_score(x, scale)))
        take("critique", lambda value: of_each_response(value, responses, lambda x, _: read_text(x)))
        take("ranking", lambda value: fields.read_ranking(value, responses))
        take("preference", lambda value: fields.read_preference(value, responses))
        take("spans", lambda value: of_each_response(value, responses, fields.read_spans, of_objects=True))
        take("steps", lambda value: of_each_response(value, responses, fields.read_steps, of_objects=True))
    for name in ("source", "episode", "id"):
        take(name, read_text)
    take("meta", lambda value: fields.read_meta(value, len(values.get("responses", ())) if readable else None))
    if faults:
        raise Faults(faults)
    return Judgement(**values, where=where)


def _refuse_deep(value: Any) -> None:
    level, depth = [value], 0
    while level := [x for outer in level for x in _parts(outer)]:
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"its brackets are nested more than {DEPTH} deep; make it flatter")


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def unknown_field(name: str, fields: Sequence[str] = FIELDS) -> str:
    name = cut(name)
    near = difflib.get_close_matches(name, fields, 1)
    return f"{name}: unknown field; " + (f"did you mean {near[0]}?" if near else f"known fields: {', '.join(fields)}")
