"""From what people answered to judgements, and to what is wrong with an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_modules.feedback.people import forces
from data_modules.feedback.people.items import Field
from data_modules.judgements.fields import Scale
from data_modules.judgements.parsing import Faults, parse
from data_modules.judgements.schema import Judgement


@dataclass(frozen=True)
class Answer:
    """What one person said to one question."""

    field: Field
    value: Any
    comment: str | None
    by: str


def judgement(record: Mapping[str, Any], answers: Sequence[Answer], id: str, scale: Scale) -> Judgement:
    """What one person said of an item, `id` being that of this review.

    A comment on a score is the critique. One on a ranking is of no single response: it is kept as `meta.comment`.

    Raises:
        Faults: an answer that cannot be used.
    """
    said: dict[str, Any] = {answer.field: answer.value for answer in answers}
    meta = dict(record.get("meta", {}))
    for answer in answers:
        if answer.comment and answer.field == "score":
            said["critique"] = answer.comment
        elif answer.comment:
            meta["comment"] = answer.comment
    faults: list[str] = []
    if isinstance(said.get("expected"), str) and "episode" in record:
        try:
            forces.check(said["expected"], meta["steps"])
        except ValueError as error:
            faults.append(f"expected: {error}")
    try:
        found = parse({**record, **said, "meta": meta, "source": answers[0].by, "id": id}, scale)
    except Faults as error:
        faults += error.faults
    if faults:
        raise Faults(faults)
    return found
