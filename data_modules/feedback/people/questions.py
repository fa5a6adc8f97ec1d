"""What the review page asks of an item, and which field of a judgement an answer is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from data_modules.feedback.fields import Scale
from data_modules.feedback.people.items import Item

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
    asked = [score(scale)] if any(item.candidates == 1 for item in items) else []
    if any(item.candidates > 1 for item in items):
        asked.append(RANKING)
    if any("episode" not in item.record for item in items):
        asked.append(EXPECTED)
    if any("episode" in item.record for item in items):
        asked.append(ACTION)
    return asked


def field_of(name: str) -> Field | None:
    """The field that answers to the question of this name are; None for a question of somebody else."""
    known = {question.name: question.field for question in (RANKING, EXPECTED, ACTION)}
    return "score" if name.startswith("score ") else known.get(name)
