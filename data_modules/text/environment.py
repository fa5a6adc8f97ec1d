"""What a text task is: cases, a dialogue about each, and what its teacher would have said. Strings only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from data_modules.judgements.schema import PromptText, readable

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Case:
    """One prompt, and what the task must know to judge a reply to it."""

    id: str  # unique within the task, and the same in every process
    prompt: PromptText
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The prompt as one text, of `readable`."""
        return readable(self.prompt)

    @property
    def plain_facts(self) -> dict[str, Any]:
        """The facts that JSON can hold. A prediction file keeps them for its judge."""
        return {name: fact for name, fact in self.facts.items() if _is_plain(fact)}


def _is_plain(fact: Any) -> bool:
    try:
        json.dumps(fact, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


@dataclass(frozen=True)
class Outcome:
    """What follows a reply."""

    reward: float | None  # None where the task has no rule that pays
    parts: Mapping[str, float] = field(default_factory=dict)  # what the reward is made of, by name
    text: str = ""  # what the environment says next: attended to, never learned
    done: bool = True


class Dialogue(Protocol):
    """One running episode."""

    def reply(self, text: str, finished: bool) -> Outcome:
        """The learner's turn, without its stop token; `finished` is whether it ended by itself."""


class TextEnvironment(Protocol):
    """A task: its prompts, and what its rules say of a reply. It may have none: then no reply has a reward."""

    turns: int  # replies an episode has at most

    def cases(self, split: Split) -> Sequence[Case]:
        """All prompts of a split, in the same order every time; the splits share none."""

    def begin(self, case: Case) -> Dialogue: ...

    def corpus(self) -> Iterator[str]:
        """Texts that hold every word of the task, for a tokenizer to be made from."""

    def demonstrations(self, split: Split) -> Sequence[tuple[PromptText, str]]:
        """Prompts and replies of the start, which need not be good: what the first policy imitates."""

    def expected(self, case: Case) -> str | None:
        """What the teacher would have said."""

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        """What is wrong with a reply, in words; the same words for the same seed."""


@runtime_checkable
class StepTeacher(Protocol):
    """What a task may offer beside: a label for each step of a reply."""

    def steps(self, case: Case, reply: str) -> Sequence[Mapping[str, float]]:
        """`end`, the number of characters up to where a step ends, and its `label`; none where no step ends."""


@runtime_checkable
class SpanTeacher(Protocol):
    """What a task may offer beside: where in a reply its critique points."""

    def spans(self, case: Case, reply: str) -> Sequence[tuple[int, int]]:
        """First character and the one behind the last of each error that the reply has; what is missing has none."""


@runtime_checkable
class Revisable(Protocol):
    """What a task may offer beside: the prompts behind which a critique is used. Each is one turn of its own."""

    praise: str  # the critique of what is right
    placebo: str  # a critique that fits any reply, and says nothing of it

    def revision_prompt(self, case: Case, reply: str, critique: str) -> PromptText:
        """The prompt again, a reply and what was wrong with it; a better reply is to follow."""

    def critique_prompt(self, case: Case, reply: str) -> PromptText:
        """The prompt again and a reply; its critique is to follow."""

    def conditioned_prompt(self, case: Case, critique: str) -> PromptText:
        """The prompt and a critique; a reply that would be criticised so is to follow."""

    def announced(self, good: bool) -> str:
        """What stands behind a prompt, or behind a reply to it, before a good or a bad reply."""
