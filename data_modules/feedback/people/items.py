"""What people are asked: a line of a feedback file as the review page shows it, and the questions beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from data_modules.judgements.fields import Scale
from data_modules.judgements.files import each_line
from data_modules.judgements.ranking import letter
from data_modules.judgements.schema import Judgement
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
    return list({item.digest: item for item in each_line(judgements, _item)}.values())


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


Field = Literal["score", "ranking", "expected"]


@dataclass(frozen=True)
class Question:
    """A label schema of MLflow. Its name is what a person reads first, and unique in the experiment."""

    field: Field
    name: str
    instruction: str
    comment: bool = False  # there is a box for words beside the answer


RANKING = Question(
    "ranking", "ranking", "Where there are several answers: best first, = for a tie, e.g. B > C = D > A", comment=True
)
EXPECTED = Question("expected", "expected_response", "What the answer should have been, word for word")
ACTION = Question(
    "expected",
    "expected_action",
    "Who does better here: LQRExpert or WeakExpert. Or the force at steps that went wrong: 12-20: -1.5, 31: 0.4 "
    "(from -3 to 3, positive pushes to the right)",
)


def score(scale: Scale) -> Question:
    name = f"score {scale[0]:g} to {scale[1]:g}"
    words = "The higher the better. In the box below, what is wrong with it: words come with a number, or are lost"
    return Question("score", name, words, comment=True)


def questions(items: Sequence[Item], scale: Scale) -> list[Question]:
    """Those that fit some of the items, in the order in which the page has them."""
    counts = [len(item.record["responses"]) for item in items]
    asked = [score(scale)] if 1 in counts else []
    if max(counts) > 1:
        asked.append(RANKING)
    if any("episode" not in item.record for item in items):
        asked.append(EXPECTED)
    if any("episode" in item.record for item in items):
        asked.append(ACTION)
    return asked


def field_of(name: str) -> Field | None:
    """The field that answers to the question of this name are; None for a question of somebody else."""
    fields = {question.name: question.field for question in (RANKING, EXPECTED, ACTION)}
    return "score" if name.startswith("score ") else fields.get(name)
