"""Items and questions on the review page."""

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

SHOWN = 10_000  # maximum number of characters in a text; the page truncates longer texts
_ASKED = ("id", "prompt", "responses", "episode", "meta")  # all fields except feedback


@dataclass(frozen=True)
class Item:
    """An item of the review page: a prompt and its responses, in Markdown that shows both verbatim."""

    record: dict[str, Any]  # line of the feedback file, without feedback
    request: str
    response: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the record, so that the same line is the same item, however often it is submitted."""
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()

    @property
    def picture(self) -> Path | None:
        """The path of the GIF beside a recorded episode; None without a GIF."""
        path = Path(self.record["episode"]).with_suffix(".gif") if "episode" in self.record else None
        return path if path is not None and path.is_file() else None


def items(judgements: Sequence[Judgement]) -> list[Item]:
    """Make one item for each different line.

    Raises:
        ValueError: a line has no response, a text is too long for the page, or the number of steps of an episode is
            missing.
    """
    return list({item.digest: item for item in each_line(judgements, _item)}.values())


def _item(judgement: Judgement) -> Item:
    if not judgement.responses:
        raise ValueError("responses: the line has none to review; remove the line")
    steps = judgement.meta.get("steps")
    if judgement.episode is not None and not (type(steps) is int and steps > 0):
        raise ValueError("meta.steps: is missing; add the number of steps of the episode")
    record = {name: value for name, value in judgement.record().items() if name in _ASKED}
    item = Item(record, _request(judgement), _response(judgement))
    for name, text in (("prompt", item.request), ("responses", item.response)):
        if len(text) > SHOWN:
            raise ValueError(
                f"{name}: {len(text)} characters, and the review page shows only {SHOWN}; shorten the text or remove "
                "the line"
            )
    return item


def _request(judgement: Judgement) -> str:
    if isinstance(judgement.prompt, str):
        return word_for_word(judgement.prompt)
    return "\n\n".join(f"**{message.role}**\n\n{word_for_word(message.content)}" for message in judgement.prompt)


def _response(judgement: Judgement) -> str:
    """The reply, or several replies under their letters. A reply that was cut off ends with …"""
    replies = [
        word_for_word(text) + ("" if judgement.finished(i) else " …") for i, text in enumerate(judgement.responses)
    ]
    if len(replies) == 1:
        return replies[0]
    return "\n\n---\n\n".join(f"**{letter(i)}**\n\n{text}" for i, text in enumerate(replies))


Field = Literal["score", "ranking", "expected"]


@dataclass(frozen=True)
class Question:
    """A question: a label schema of MLflow. Its name is the heading on the page, and unique in the experiment."""

    field: Field
    name: str
    instruction: str
    comment: bool = False  # whether there is a box for a comment


RANKING = Question(
    "ranking", "ranking", "If there are several answers: best first, = for a tie, e.g. B > C = D > A", comment=True
)
EXPECTED = Question("expected", "expected_response", "Write the full answer that you would have expected")
ACTION = Question(
    "expected",
    "expected_action",
    "The expert to imitate: LQRExpert or WeakExpert. Or better forces for single steps: 12-20: -1.5, 31: 0.4 "
    "(from -3 to 3; positive forces push to the right)",
)


def score(scale: Scale) -> Question:
    name = f"score {scale[0]:g} to {scale[1]:g}"
    words = "Higher is better. Use the box below to say what is wrong; a comment without a score is lost"
    return Question("score", name, words, comment=True)


def questions(items: Sequence[Item], scale: Scale) -> list[Question]:
    """The questions that apply to at least one item, in the order of the page."""
    counts = [len(item.record["responses"]) for item in items]
    fitting = [score(scale)] if 1 in counts else []
    if max(counts) > 1:
        fitting.append(RANKING)
    if any("episode" not in item.record for item in items):
        fitting.append(EXPECTED)
    if any("episode" in item.record for item in items):
        fitting.append(ACTION)
    return fitting


def field_of(name: str) -> Field | None:
    """The field that the question with this name fills in; None for a question of a different program."""
    fields = {question.name: question.field for question in (RANKING, EXPECTED, ACTION)}
    return "score" if name.startswith("score ") else fields.get(name)
