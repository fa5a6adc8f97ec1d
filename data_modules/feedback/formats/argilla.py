"""Argilla: records exported with `to_json`, and rows of its data sets (Argilla 1 and 2).

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
    """Whether a record has this format."""
    nested = isinstance(record.get("fields"), dict) and "responses" in record
    return nested or any(name.endswith(".responses") or _column(value) for name, value in record.items())


def judgements(record: Value, account: Account) -> list[Judgement]:
    """One judgement per user, with the user as its source."""
    fields = record["fields"].fields() if "fields" in record else _texts(record)
    name, prompt = prompt_of(fields, account.options, account)
    responses = responses_of(fields, account.options, name)
    sheets: dict[str | None, Sheet] = {}
    for question, user, value, status in _answers(record):
        if status and status.text() not in ("submitted", "ResponseStatus.submitted"):
            account.note("answers left out because they were not submitted")
            value.raw()
            continue
        user_id = user.name()
        sheet = sheets.setdefault(user_id, Sheet(prompt, responses, user_id, account))
        _carry(question, value, sheet)
    if not sheets:
        raise LeftOut("records without answers")
    key = record["external_id"].name() or record["id"].name()
    meta = record["metadata"].raw() if isinstance(record["metadata"].json, dict) else {}
    return [line for sheet in sheets.values() for line in sheet.judgements(key, meta)]


def _carry(question: str, value: Value, sheet: Sheet) -> None:
    """Add an answer to a sheet: a number is a score, a list of responses is a ranking, a text stays a text."""
    if isinstance(value.json, int | float) and not isinstance(value.json, bool):
        sheet.rate(question, value.number())
    elif isinstance(value.json, str):
        if text := value.words():
            sheet.write(question, text)
    elif (order := _order(value)) is not None:
        _rank(question, order, sheet)
    else:
        sheet.account.note(f"answers left out because they are not a rating, ranking or text: `{question}`")
        value.raw()


def _order(value: Value) -> dict[str, int] | None:
    """Name → rank, from [{value, rank}], {value: […], rank: […]}, or names in order; None if it is no ranking."""
    if isinstance(value.json, dict) and {"value", "rank"} <= value.json.keys():
        pairs = zip(value["value"].elements(), value["rank"].elements(), strict=False)
        return {name.text(): rank.whole() for name, rank in pairs}
    items = value.elements() if isinstance(value.json, list) else []
    if items and all(isinstance(item.json, str) for item in items):
        return {item.text(): i for i, item in enumerate(items)}
    if items and all("value" in item for item in items):
        return {item["value"].text(): item["rank"].whole() if "rank" in item else i for i, item in enumerate(items)}
    return None


def _rank(question: str, order: dict[str, int], sheet: Sheet) -> None:
    ranks = {sheet.place(name): rank for name, rank in order.items()}
    if len(sheet.responses) < 2 or set(ranks) != set(range(len(sheet.responses))):
        sheet.account.note(f"rankings left out because they do not rank each response once: `{question}`")
    else:
        sheet.ranks = tuple(ranks[i] for i in range(len(sheet.responses)))


def _answers(record: Value) -> Iterator[Answer]:
    """All answers of a record. A record groups its answers by question, by user, or in columns."""
    responses = record["responses"]
    if isinstance(responses.json, dict):
        for question, answers in responses.fields().items():
            for entry in answers.elements():
                yield question, entry["user_id"], entry["value"], entry["status"]
    elif isinstance(responses.json, list):
        for entry in responses.elements():
            for question, answer in entry["values"].fields().items():
                yield question, entry["user_id"], answer["value"], entry["status"]
    else:
        for name, column in record.fields().items():
            yield from _of_column(record, name, column)


def _of_column(record: Value, name: str, column: Value) -> Iterator[Answer]:
    nothing = Value(None)
    if name.endswith(".responses"):
        users, states = (record[f"{name}.{kind}"] for kind in ("users", "status"))
        users_of, states_of = (entry.elements() if entry else [] for entry in (users, states))
        for i, value in enumerate(column.elements()):
            user, state = (listed[i] if i < len(listed) else nothing for listed in (users_of, states_of))
            yield name.removesuffix(".responses"), user, value, state
    elif _column(column.json) and isinstance(column.json, list):
        for entry in column.elements():
            yield name, entry["user_id"], entry["value"], entry["status"]
    elif _column(column.json):
        for user, value, state in zip(
            *(column[key].elements() for key in ("user_id", "value", "status")), strict=False
        ):
            yield name, user, value, state


def _column(value: Any) -> bool:
    """Whether a column holds the answers to a question, in the format of Argilla 1."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and {"user_id", "value", "status"} <= first.keys()


def _texts(record: Value) -> dict[str, Value]:
    """The text columns of a record."""
    return {name: value for name, value in record.fields().items() if isinstance(value.json, str)}
