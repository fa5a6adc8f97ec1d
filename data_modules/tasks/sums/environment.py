"""Sums that are worked out step by step, where every step can be judged: for rewards of steps, and of answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from data_modules.judgements.schema import PromptText
from data_modules.ranges import shares
from data_modules.tasks.one_turn import Defect, worded
from data_modules.tasks.sums.expressions import (
    LARGEST,
    OPERATIONS,
    STEP_END,
    Expression,
    drawn_sum,
    next_place,
    operation_at,
    reduced,
    result,
    stays_small,
    value_of,
    working,
)
from data_modules.text.environment import Case, Dialogue, Outcome, Split
from lightning_nlf.numbers import Seed, Share, Size

DRAWS = 200  # a sum that is looked for
SPLITS: dict[Split, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
PARAPHRASES: dict[str, Sequence[str]] = {
    "result": ("step {step} is wrong : {sum} is {right} .", "look at step {step} again , {sum} makes {right} ."),
    "unknown": (
        "step {step} is wrong , work out {sum} again .",
        "look at step {step} again , {sum} makes no such number .",
    ),
    "order": ("step {step} comes too early , first work out {first} .", "in step {step} work out {first} first ."),
    "unreadable": ("step {step} is no part of this sum .", "nothing in the sum asks for step {step} ."),
    "missing": ("the sum is not worked out to its end .", "go on until one number is left ."),
}


@dataclass(frozen=True)
class Step:
    """One step of a reply as it was judged."""

    end: int  # how many characters of the reply it and all before it are
    defect: Defect | None = None

    @property
    def right(self) -> bool:
        return self.defect is None

    @property
    def follows(self) -> bool:
        """Whether it works out a part of the sum at all."""
        return self.defect is None or self.defect.kind != "unreadable"


class ArithmeticSteps:
    """A `TextEnvironment` of one turn: `3 + 4 * 2 - 5 =` is worked out as `4 * 2 = 8 . 3 + 8 = 11 . 11 - 5 = 6 .`

    A step works out two neighbours of what is left of the sum, and ends with a full stop. It is right if its result is,
    and what is then left has the value that was left before: a step that follows from a mistake can be right.
    The reward is 1 for the answer alone: the right number is left at the end, and the reply ended by itself. `parts`
    has the share of right steps beside it.

    Args:
        seed: of the sums, their splits and the demonstrations.
        sums: of all splits; eight in ten to train on, the rest half and half.
        numbers: in a sum, from 3 to so many.
        wrong: share of the demonstrations' steps that are wrong, in the result or the order, wherever one can be.
        draws: demonstrations a prompt.
        largest: of the numbers in a sum and in its right working; the fewer there are, the sooner a model knows them.

    Raises:
        ValueError: a share outside [0, 1], fewer than 10 sums or 3 numbers, more sums than there are, no draw.
    """

    turns = 1

    def __init__(
        self,
        seed: Seed = 0,
        sums: Size = 2000,
        numbers: Size = 4,
        wrong: Share = 0.2,
        draws: Size = 1,
        largest: Size = LARGEST,
    ) -> None:
        shares(wrong=wrong)
        most = 3000 if numbers == 3 else 20_000
        for name, value, low, high in (
            ("numbers", numbers, 3, 8), ("sums", sums, 10, most), ("draws", draws, 1, 1000),
            ("largest", largest, 9, LARGEST),
        ):  # fmt: skip
            if not low <= value <= high:
                raise ValueError(f"{name}: got {value}, must be between {low} and {high}")
        self.seed, self.sums, self.numbers, self.wrong, self.draws = seed, sums, numbers, wrong, draws
        self.largest = largest

    @cached_property
    def _cases(self) -> dict[Split, list[Case]]:
        rng = Random(f"{self.seed} sums")
        drawn: dict[Expression, None] = {}
        for _ in range(DRAWS * self.sums):
            expression = drawn_sum(rng, self.numbers)
            if stays_small(expression, self.largest):
                drawn[expression] = None
            if len(drawn) == self.sums:
                break
        else:
            raise ValueError(
                f"sums: no {self.sums} different ones of {self.numbers} numbers up to {self.largest} were found; "
                "ask for fewer, or raise largest"
            )
        cases = [
            Case(f"sum {i}", " ".join(expression) + " =", {"expression": expression, "value": value_of(expression)})
            for i, expression in enumerate(drawn)
        ]
        first, second = (round(len(cases) * share) for share in (SPLITS["train"], SPLITS["train"] + SPLITS["val"]))
        return {"train": cases[:first], "val": cases[first:second], "test": cases[second:]}

    def cases(self, split: Split) -> Sequence[Case]:
        """`facts` has the expression and its value."""
        return self._cases[split]

    def begin(self, case: Case) -> Dialogue:
        return _Working(case)

    def demonstrations(self, split: Split) -> Sequence[tuple[PromptText, str]]:
        """Workings with mistakes, `draws` for each case: those of `cases(split)` in their order, and so again."""
        rng = Random(f"{self.seed} demonstrations {split}")
        return [
            (case.text, " ".join(working(case.facts["expression"], self.wrong, rng, self.largest)))
            for _ in range(self.draws)
            for case in self.cases(split)
        ]

    def expected(self, case: Case) -> str | None:
        return " ".join(working(case.facts["expression"]))

    def steps(self, case: Case, reply: str) -> list[dict[str, int]]:
        """Where each step of a reply ends, as the number of characters up to there, and its label: 1 is right."""
        return [{"end": step.end, "label": int(step.right)} for step in judged(case, reply)[0]]

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        """The first wrong step and why, or that the end is missing; None for a reply that is right."""
        steps, left = judged(case, reply)
        defects = [step.defect for step in steps if step.defect is not None][:1]
        if not defects and len(left) > 1:
            defects = [Defect("missing")]
        return worded(defects, PARAPHRASES, seed)

    def corpus(self) -> Iterator[str]:
        for split in SPLITS:
            yield from (case.text for case in self.cases(split))
        yield " ".join(map(str, range(LARGEST + 1)))
        yield " ".join([*OPERATIONS, "=", STEP_END])
        for paraphrases in PARAPHRASES.values():
            yield from (re.sub(r"\{\w+\}", "1", words) for words in paraphrases)


@dataclass(frozen=True)
class _Working:
    case: Case

    def reply(self, text: str, finished: bool) -> Outcome:
        steps, left = judged(self.case, text)
        ends = finished and text.rstrip().endswith(STEP_END) and steps[-1].follows
        answered = ends and left == (str(self.case.facts["value"]),)
        share = sum(step.right for step in steps) / max(len(steps), 1)
        parts = {"answer": float(answered), "steps": share, "finished": float(finished)}
        return Outcome(reward=float(answered), parts=parts)


def judged(case: Case, reply: str) -> tuple[list[Step], Expression]:
    """Each sentence of a reply as a step, and what is left of the sum. Words without a full stop are no step yet."""
    left: Expression = case.facts["expression"]
    steps = []
    for number, sentence in enumerate(re.finditer(rf"[^{STEP_END}]*\{STEP_END}", reply), 1):
        words = tuple(sentence.group()[: -len(STEP_END)].split())
        place = _place(left, words)
        if place is None:
            steps.append(Step(sentence.end(), Defect("unreadable", {"step": str(number)})))
            continue
        stated, right = int(words[4]), result(*words[:3])
        after = reduced(left, place, stated)
        known = {"step": str(number), "sum": " ".join(words[:3]), "right": str(right)}
        defect = None
        if stated != right:
            # A number outside the task's has no word.
            defect = Defect("result" if 0 <= right <= LARGEST else "unknown", known)
        elif value_of(after) != value_of(left):
            defect = Defect("order", known | {"first": " ".join(operation_at(left, next_place(left)))})
        steps.append(Step(sentence.end(), defect))
        left = after
    return steps, left


def _place(left: Expression, words: tuple[str, ...]) -> int | None:
    """Which operation of what is left a step `a + b = c` works out: the one that comes first if it may be several."""
    if len(words) != 5 or words[3] != "=" or not re.fullmatch(r"-?\d{1,4}", words[4]):
        return None
    places = [place for place in range(1, len(left), 2) if operation_at(left, place) == words[:3]]
    if not places:
        return None
    return next_place(left) if next_place(left) in places else places[0]
