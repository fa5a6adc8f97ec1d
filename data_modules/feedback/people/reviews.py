"""Convert people's answers into judgements, with checks."""

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
    """One person's answer to one question."""

    field: Field
    value: Any
    comment: str | None
    by: str


def judgement(record: Mapping[str, Any], answers: Sequence[Answer], id: str, scale: Scale) -> Judgement:
    """Build a judgement from one person's answers about an item; `id` is the id of the review.

    A comment on a score is the critique. A comment on a ranking concerns several responses and becomes `meta.comment`.

    Raises:
        Faults: an answer is unusable.
    """
    fields: dict[str, Any] = {answer.field: answer.value for answer in answers}
    meta = dict(record.get("meta", {}))
    for answer in answers:
        if answer.comment and answer.field == "score":
            fields["critique"] = answer.comment
        elif answer.comment:
            meta["comment"] = answer.comment
    faults: list[str] = []
    if isinstance(fields.get("expected"), str) and "episode" in record:
        try:
            forces.check(fields["expected"], meta["steps"])
        except ValueError as error:
            faults.append(f"expected: {error}")
    try:
        review = parse({**record, **fields, "meta": meta, "source": answers[0].by, "id": id}, scale)
    except Faults as error:
        faults += error.faults
    if faults:
        raise Faults(faults)
    return review
