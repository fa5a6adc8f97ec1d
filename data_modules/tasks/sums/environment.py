"""Arithmetic step by step, with a rule that judges every step, for process and outcome rewards."""

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

DRAWS = 200  # maximum number of tries to draw each sum
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
    """A judged step of a reply."""

    end: int  # number of characters in the reply up to the end of this step
    defect: Defect | None = None

    @property
    def right(self) -> bool:
        return self.defect is None

    @property
    def follows(self) -> bool:
        """Whether the step works out a part of the sum, with a right or a wrong result."""
        return self.defect is None or self.defect.kind != "unreadable"


class ArithmeticSteps:
    """A `TextEnvironment` of one turn: `3 + 4 * 2 - 5 =` is worked out as `4 * 2 = 8 . 3 + 8 = 11 . 11 - 5 = 6 .`

    A step replaces two neighbouring numbers by a result, and ends with a full stop. A step is right if its result is
    right, and if it does not change the value of the remaining sum, so a step after a mistake can still be right. The
    reward is 1 if the right number is left at the end and the reply is finished, else 0. `parts` also has the share of
    right steps.

    Args:
        seed: seed for the sums, the splits and the demonstrations.
        sums: number of sums in all splits together; 80 % for training, and 10 % each for `val` and `test`.
        numbers: maximum count of numbers in a sum; the minimum is 3.
        wrong: share of the demonstrated steps with a mistake in the result or the order, if a mistake is possible.
        draws: number of demonstrations per prompt.
        largest: largest number that occurs in a sum and in its right working. A model learns faster with smaller
            numbers.

    Raises:
        ValueError: a share is outside [0, 1]; a setting is out of range; or there are fewer than `sums` different sums.
    """

    turns = 1

    def __init__(
        self,
        seed: Seed | None = None,
        sums: Size = 10_000,
        numbers: Size = 4,
        wrong: Share = 0.2,
        draws: Size = 1,
        largest: Size = 20,
    ) -> None:
        shares(wrong=wrong)
        most_sums = 3000 if numbers == 3 else 20_000
        for name, value, low, high in (
            ("numbers", numbers, 3, 8), ("sums", sums, 10, most_sums), ("draws", draws, 1, 1000),
            ("largest", largest, 9, LARGEST),
        ):  # fmt: skip
            if not low <= value <= high:
                raise ValueError(f"{name}: got {value}, must be between {low} and {high}")
        self.seed, self.sums, self.numbers, self.wrong, self.draws = seed or 0, sums, numbers, wrong, draws
        self.largest = largest
        self.max_new = 28 * (numbers - 1) // 3  # one step fewer than numbers
        self.context = self.max_new + 3 * numbers

    @cached_property
    def _cases(self) -> dict[Split, list[Case]]:
        rng = Random(f"{self.seed} sums")
        expressions: dict[Expression, None] = {}
        for _ in range(DRAWS * self.sums):
            expression = drawn_sum(rng, self.numbers)
            if stays_small(expression, self.largest):
                expressions[expression] = None
            if len(expressions) == self.sums:
                break
        else:
            raise ValueError(
                f"sums: got {self.sums}, but there are fewer different sums of {self.numbers} numbers up to "
                f"{self.largest}; lower sums, or raise largest"
            )
        cases = [
            Case(f"sum {i}", " ".join(expression) + " =", {"expression": expression, "value": value_of(expression)})
            for i, expression in enumerate(expressions)
        ]
        first, second = (round(len(cases) * share) for share in (SPLITS["train"], SPLITS["train"] + SPLITS["val"]))
        return {"train": cases[:first], "val": cases[first:second], "test": cases[second:]}

    def cases(self, split: Split) -> Sequence[Case]:
        """The cases of a split. `facts` has the expression and the value of the expression."""
        return self._cases[split]

    def begin(self, case: Case) -> Dialogue:
        return _Working(case)

    def demonstrations(self, split: Split) -> Sequence[tuple[PromptText, str]]:
        """Workings with mistakes: one for each of `cases(split)`, in order, and all of this `draws` times."""
        rng = Random(f"{self.seed} demonstrations {split}")
        return [
            (case.text, " ".join(working(case.facts["expression"], self.wrong, rng, self.largest)))
            for _ in range(self.draws)
            for case in self.cases(split)
        ]

    def expected(self, case: Case) -> str | None:
        return " ".join(working(case.facts["expression"]))

    def steps(self, case: Case, reply: str) -> list[dict[str, int]]:
        """The end of each step in a reply, in characters, and the label of the step: 1 if it is right, else 0."""
        return [{"end": step.end, "label": int(step.right)} for step in read_steps(case, reply)[0]]

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        """A critique of the first wrong step with the reason, or of missing steps; None without errors."""
        steps, left = read_steps(case, reply)
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
        steps, left = read_steps(self.case, text)
        ends = finished and text.rstrip().endswith(STEP_END) and steps[-1].follows
        answered = ends and left == (str(self.case.facts["value"]),)
        share = sum(step.right for step in steps) / max(len(steps), 1)
        parts = {"answer": float(answered), "steps": share, "finished": float(finished)}
        return Outcome(reward=float(answered), parts=parts)


def read_steps(case: Case, reply: str) -> tuple[list[Step], Expression]:
    """Parse each sentence of a reply as a step; also return the remaining sum. Words need a full stop."""
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
        words_for = {"step": str(number), "sum": " ".join(words[:3]), "right": str(right)}
        defect = None
        if stated != right:
            # the vocabulary has no number outside the task's range
            defect = Defect("result" if 0 <= right <= LARGEST else "unknown", words_for)
        elif value_of(after) != value_of(left):
            defect = Defect("order", words_for | {"first": " ".join(operation_at(left, next_place(left)))})
        steps.append(Step(sentence.end(), defect))
        left = after
    return steps, left


def _place(left: Expression, words: tuple[str, ...]) -> int | None:
    """The index of the operation that a step `a + b = c` works out; if several fit, the operation that comes next."""
    if len(words) != 5 or words[3] != "=" or not re.fullmatch(r"-?\d{1,4}", words[4]):
        return None
    places = [place for place in range(1, len(left), 2) if operation_at(left, place) == words[:3]]
    if not places:
        return None
    return next_place(left) if next_place(left) in places else places[0]
