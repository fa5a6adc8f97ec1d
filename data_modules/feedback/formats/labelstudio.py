"""Label Studio's JSON export (https://labelstud.io/guide/task_format): tasks with annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from data_modules.feedback.formats.account import Account, LeftOut
from data_modules.feedback.formats.annotation import Sheet, prompt_of, responses_of
from data_modules.feedback.formats.value import Value
from data_modules.judgements.fields import astral, cut
from data_modules.judgements.schema import Judgement, Span


def fits(record: dict[str, Any]) -> bool:
    """Whether a record has this format."""
    return isinstance(record.get("data"), dict) and isinstance(record.get("annotations"), list)


def judgements(record: Value, account: Account) -> list[Judgement]:
    """One judgement per annotation, with the annotator as its source."""
    fields = record["data"].fields()
    name, prompt = prompt_of(fields, account.options, account)
    items = next((value for key, value in fields.items() if key != name and _items(value.json)), None)
    responses = responses_of(fields, account.options, name) if items is None else _listed(items)
    lines: list[Judgement] = []
    for annotation in record["annotations"].elements():
        if annotation["was_cancelled"] and annotation["was_cancelled"].flag():
            account.note("annotations left out because they were cancelled")
            continue
        by = annotation["completed_by"]
        sheet = Sheet(prompt, responses, by["id"].name() if isinstance(by.json, dict) else by.name(), account)
        for result in annotation["result"].elements():
            _carry(result, sheet)
        lines += sheet.judgements(record["id"].name(), {})
    if not lines:
        raise LeftOut("records without answers")
    return lines


def _items(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) and "id" in x for x in value)


def _listed(items: Value) -> dict[str, str]:
    """The responses in a list to rank, by id."""
    texts = {item["id"].name() or "": item["body"].words() or item["html"].words() for item in items.elements()}
    if not all(texts.values()) or "" in texts:
        raise ValueError(f"{items.path}: each item must have an id, and a text in body or html")
    return {name: text for name, text in texts.items() if text}


def _carry(result: Value, sheet: Sheet) -> None:
    kind = result["type"].text()
    if kind in _CARRY:
        _CARRY[kind](result, sheet)
    else:
        sheet.account.note(f"results of type {cut(kind)} left out")
        result.raw()


def _about(result: Value, sheet: Sheet) -> str:
    """The name of the response that a result is about: the object's name, or else the question's name."""
    target = result["to_name"].text()
    return target if sheet.place(target) is not None else result["from_name"].text()


def _rating(result: Value, sheet: Sheet) -> None:
    sheet.rate(_about(result, sheet), result["value"][result["type"].text()].number())


def _textarea(result: Value, sheet: Sheet) -> None:
    text = result["value"]["text"]
    words = [part.words() for part in text.elements()] if isinstance(text.json, list) else [text.words()]
    for comment in words:
        if comment and "start" in result["value"]:
            comment = f"“{_quote(result, sheet)}”: {comment}"
        if comment:
            sheet.write(result["from_name"].text(), comment, _about(result, sheet))


def _labels(result: Value, sheet: Sheet) -> None:
    """Add a span to the sheet, and a line to the critique with the labels of the span and the quoted text."""
    i = sheet.place(_about(result, sheet))
    if i is None:
        sheet.account.note("spans left out because they name no response")
        return
    start, end = _range(result, sheet, i)
    labels = ", ".join(label.text() for label in result["value"]["labels"].elements())
    sheet.spans.setdefault(i, []).append(Span(start, end))
    sheet.critique.setdefault(i, []).append(f"{labels}: “{_quote(result, sheet)}”")


def _quote(result: Value, sheet: Sheet) -> str:
    i = sheet.place(_about(result, sheet)) or 0
    start, end = _range(result, sheet, i)
    return list(sheet.responses.values())[i][start:end]


def _range(result: Value, sheet: Sheet, i: int) -> tuple[int, int]:
    response = list(sheet.responses.values())[i]
    start, end = (character(response, result["value"][name]) for name in ("start", "end"))
    result["value"]["text"].raw()  # marks the field as read; it only repeats the span's characters
    return start, end


def character(text: str, units: Value) -> int:
    """Convert an offset in UTF-16 code units, as browsers count, to a character index. An emoji has two code units."""
    number = units.whole()
    if not 0 <= number <= len(text.encode("utf-16-le", "surrogatepass")) // 2:
        raise ValueError(f"{units.path}: {number} is outside the response of {len(text)} characters")
    if not astral(text):
        return number
    ends = [0]
    for char in text:
        ends.append(ends[-1] + 1 + (char > "\uffff"))
    if number not in ends:
        raise ValueError(f"{units.path}: {number} is in the middle of a character")
    return ends.index(number)


def _pairwise(result: Value, sheet: Sheet) -> None:
    """Add a comparison to the sheet; left and right are the first and the second object."""
    selected, names = result["value"]["selected"], result["to_name"].text().split(",")
    places = [sheet.place(name.strip()) for name in names]
    if None in places or len(set(places)) != 2:
        places = [0, 1] if len(sheet.responses) == 2 else []
    if not places or selected.text() not in ("left", "right"):
        sheet.account.note("comparisons left out because they do not select one of two responses")
    else:
        left, right = (place or 0 for place in places)
        sheet.comparisons.append((left, right, ">" if selected.text() == "left" else "<"))


def _ranker(result: Value, sheet: Sheet) -> None:
    """Set the ranking from an ordered list of ids. Results with several buckets have no order and are left out."""
    value = result["value"]["ranker"]
    buckets = [value] if isinstance(value.json, list) else list(value.fields().values())
    names = [name.name() or "" for name in buckets[0].elements()] if len(buckets) == 1 else []
    if len(sheet.responses) < 2 or sorted(names) != sorted(sheet.responses):
        sheet.account.note("rankings left out because they use buckets, or do not rank all responses")
        value.raw()
    else:
        sheet.ranks = tuple(names.index(name) for name in sheet.responses)


_CARRY: Mapping[str, Callable[[Value, Sheet], None]] = {
    "rating": _rating,
    "number": _rating,
    "textarea": _textarea,
    "labels": _labels,
    "pairwise": _pairwise,
    "ranker": _ranker,
}
