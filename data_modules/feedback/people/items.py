"""What people are asked to judge: a line of a feedback file, as the review page shows it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_modules.feedback.files import enumerated
from data_modules.feedback.ranking import letter
from data_modules.feedback.schema import Judgement
from data_modules.markdown import word_for_word

SHOWN = 10_000  # characters of a text; the page cuts what is longer
_ASKED = ("id", "prompt", "responses", "episode", "meta")  # all but what somebody said of it


@dataclass(frozen=True)
class Item:
    """A prompt and what was replied to it, in Markdown that shows all of it word for word."""

    record: dict[str, Any]  # the line, without what anybody said of it
    request: str
    response: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the record: the same line is the same item, however often it is put in front of people."""
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()

    @property
    def candidates(self) -> int:
        return len(self.record["responses"])

    @property
    def picture(self) -> Path | None:
        """The GIF beside a recorded episode."""
        path = Path(self.record["episode"]).with_suffix(".gif") if "episode" in self.record else None
        return path if path is not None and path.is_file() else None


def items(judgements: Sequence[Judgement]) -> list[Item]:
    """One of each line; the same line twice is one item.

    Raises:
        ValueError: lines without a response, or with a text of which a person would not see the end; an episode without
            the number of its steps.
    """
    found: dict[str, Item] = {}
    faults: list[str] = []
    for judgement in judgements:
        try:
            item = _item(judgement)
        except ValueError as error:
            faults.append(f"{judgement.where}: {error}")
            continue
        found.setdefault(item.digest, item)
    if faults:
        raise ValueError(enumerated(faults))
    return list(found.values())


def _item(judgement: Judgement) -> Item:
    if not judgement.responses:
        raise ValueError("responses: there is none to judge; leave the line out")
    steps = judgement.meta.get("steps")
    if judgement.episode is not None and not (type(steps) is int and steps > 0):
        raise ValueError("meta: steps, the number of steps of the episode, is missing; add it")
    record = {name: value for name, value in judgement.record().items() if name in _ASKED}
    item = Item(record, _request(judgement), _response(judgement))
    for name, text in (("prompt", item.request), ("responses", item.response)):
        if len(text) > SHOWN:
            raise ValueError(
                f"{name}: {len(text)} characters are more than the {SHOWN} that the review page shows; leave the line "
                "out"
            )
    return item


def _request(judgement: Judgement) -> str:
    if isinstance(judgement.prompt, str):
        return word_for_word(judgement.prompt)
    return "\n\n".join(f"**{message.role}**\n\n{word_for_word(message.content)}" for message in judgement.prompt)


def _response(judgement: Judgement) -> str:
    """The reply; several each under its letter. One that was cut off ends with …"""
    replies = [
        word_for_word(text) + ("" if judgement.finished(i) else " …") for i, text in enumerate(judgement.responses)
    ]
    if len(replies) == 1:
        return replies[0]
    return "\n\n---\n\n".join(f"**{letter(i)}**\n\n{text}" for i, text in enumerate(replies))
