"""Argilla: records as `to_json` exports them, and rows of its data sets (of Argilla 1 and 2).

https://docs.argilla.io/latest/how_to_guides/import_export/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_modules.feedback.formats.account import Account, LeftOut
from data_modules.feedback.formats.annotation import Sheet, prompt_of, responses_of
from data_modules.feedback.formats.value import Value
from data_modules.judgements.schema import Judgement

Answer = tuple[str, Value, Value, Value]  # question, user, value, status


def fits(record: dict[str, Any]) -> bool:
    """Whether a record is of this format."""
    nested = isinstance(record.get("fields"), dict) and "responses" in record
    return nested or any(name.endswith(".responses") or _column(value) for name, value in record.items())


def judgements(record: Value, account: Account) -> list[Judgement]:
    """A judgement of each user, who is its source."""
    fields = record["fields"].fields() if "fields" in record else _texts(record)
    name, prompt = prompt_of(fields, account.options, account)
    responses = responses_of(fields, account.options, name)
    sheets: dict[str | None, Sheet] = {}
    for question, user, value, status in _answers(record):
        if status and status.text() not in ("submitted", "ResponseStatus.submitted"):
            account.note("answers left out that were not submitted")
            value.raw()
            continue
        who = user.name()
        sheet = sheets.setdefault(who, Sheet(prompt, responses, who, account))
        _carry(question, value, sheet)
    if not sheets:
        raise LeftOut("records that nobody answered")
    key = record["external_id"].name() or record["id"].name()
    meta = record["metadata"].raw() if isinstance(record["metadata"].json, dict) else {}
    return [line for sheet in sheets.values() for line in sheet.judgements(key, meta)]


def _carry(question: str, value: Value, sheet: Sheet) -> None:
    """An answer: a number is a rating, a text words, and a list of responses, or of their ranks, an order."""
    if isinstance(value.json, int | float) and not isinstance(value.json, bool):
        sheet.rate(question, value.number())
    elif isinstance(value.json, str):
        if text := value.words():
            sheet.write(question, text)
    elif (order := _order(value)) is not None:
        _rank(question, order, sheet)
    else:
        sheet.account.note(f"answers left out, as they are no rating, ranking or text: `{question}`")
        value.raw()


def _order(value: Value) -> dict[str, int] | None:
    """The rank by name: [{value, rank}], {value: […], rank: […]}, or names in order. None: it is no ranking."""
    if isinstance(value.json, dict) and {"value", "rank"} <= value.json.keys():
        pairs = zip(value["value"].each(), value["rank"].each(), strict=False)
        return {name.text(): rank.whole() for name, rank in pairs}
    items = value.each() if isinstance(value.json, list) else []
    if items and all(isinstance(item.json, str) for item in items):
        return {item.text(): i for i, item in enumerate(items)}
    if items and all("value" in item for item in items):
        return {item["value"].text(): item["rank"].whole() if "rank" in item else i for i, item in enumerate(items)}
    return None


def _rank(question: str, order: dict[str, int], sheet: Sheet) -> None:
    ranks = {sheet.place(name): rank for name, rank in order.items()}
    if len(sheet.responses) < 2 or set(ranks) != set(range(len(sheet.responses))):
        sheet.account.note(f"rankings left out, as they are not of the responses, each once: `{question}`")
    else:
        sheet.ranks = tuple(ranks[i] for i in range(len(sheet.responses)))


def _answers(record: Value) -> Iterator[Answer]:
    """All answers: by question, by user, or in columns."""
    responses = record["responses"]
    if isinstance(responses.json, dict):
        for question, answers in responses.fields().items():
            for each in answers.each():
                yield question, each["user_id"], each["value"], each["status"]
    elif isinstance(responses.json, list):
        for each in responses.each():
            for question, answer in each["values"].fields().items():
                yield question, each["user_id"], answer["value"], each["status"]
    else:
        for name, column in record.fields().items():
            yield from _of_column(record, name, column)


def _of_column(record: Value, name: str, column: Value) -> Iterator[Answer]:
    nothing = Value(None)
    if name.endswith(".responses"):
        users, states = (record[f"{name}.{kind}"] for kind in ("users", "status"))
        users_of, states_of = (each.each() if each else [] for each in (users, states))
        for i, value in enumerate(column.each()):
            user, state = (listed[i] if i < len(listed) else nothing for listed in (users_of, states_of))
            yield name.removesuffix(".responses"), user, value, state
    elif _column(column.json) and isinstance(column.json, list):
        for each in column.each():
            yield name, each["user_id"], each["value"], each["status"]
    elif _column(column.json):
        for user, value, state in zip(*(column[key].each() for key in ("user_id", "value", "status")), strict=False):
            yield name, user, value, state


def _column(value: Any) -> bool:
    """Whether a column has the answers to a question, in the way of Argilla 1."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and {"user_id", "value", "status"} <= first.keys()


def _texts(record: Value) -> dict[str, Value]:
    """The columns of texts; what they are is said by their names."""
    return {name: value for name, value in record.fields().items() if isinstance(value.json, str)}
