"""Interface of a text task: cases, a dialogue about each case, and the teacher's feedback. All of it is strings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from data_modules.judgements.schema import PromptText, readable

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Case:
    """One prompt, and the facts that the task needs to judge a reply to it."""

    id: str  # unique within the task, and the same in every process
    prompt: PromptText
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The prompt as one text, see `readable`."""
        return readable(self.prompt)

    @property
    def plain_facts(self) -> dict[str, Any]:
        """The facts that can be written as JSON. A prediction file stores these facts for a judge."""
        return {name: fact for name, fact in self.facts.items() if _is_plain(fact)}


def _is_plain(fact: Any) -> bool:
    try:
        json.dumps(fact, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


@dataclass(frozen=True)
class Outcome:
    """The result of a reply: the reward of the reply, and the environment's answer."""

    reward: float | None  # None if the task has no rule that scores replies
    parts: Mapping[str, float] = field(default_factory=dict)  # the terms of the reward, by name
    text: str = ""  # the environment's answer, which the policy reads but does not learn
    over: bool = True  # whether the episode ends with this reply


class Dialogue(Protocol):
    """One running episode of a text task."""

    def reply(self, text: str, finished: bool) -> Outcome:
        """The result of the learner's turn.  text: without the stop token; finished: False if it was cut off."""


class TextEnvironment(Protocol):
    """A text task: its prompts, and the rule that scores replies. If a task has no rule, replies have no reward."""

    turns: int  # maximum number of replies in an episode

    def cases(self, split: Split) -> Sequence[Case]:
        """All prompts of a split, always in the same order; no prompt is in two splits."""

    def begin(self, case: Case) -> Dialogue: ...

    def corpus(self) -> Iterator[str]:
        """Texts that together contain every word of the task, to build a tokenizer from."""

    def demonstrations(self, split: Split) -> Sequence[tuple[PromptText, str]]:
        """Prompts with replies that an untrained policy first imitates. The replies may be poor."""

    def expected(self, case: Case) -> str | None:
        """The teacher's expected response to the prompt; None if there is none."""

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        """What is wrong with a reply, in words; None if nothing is wrong. The seed determines the wording."""


@runtime_checkable
class Sized(Protocol):
    """Optional interface of a task: the lengths of its texts in words, which a DataModule uses as defaults."""

    max_new: int  # length of the longest reply
    context: int  # length of the longest prompt with everything that follows it


def max_new_of(task: TextEnvironment, default: int = 32) -> int:
    """Maximum number of tokens in a reply: the task's `max_new` if the task is `Sized`, else `default`."""
    return task.max_new if isinstance(task, Sized) else default


def context_of(task: TextEnvironment | None) -> int | None:
    """Number of tokens of a prompt with everything that follows it: `context` of a task that is `Sized`, else None."""
    return task.context if isinstance(task, Sized) else None


@runtime_checkable
class StepTeacher(Protocol):
    """Optional interface of a task: a label for each step of a reply."""

    def steps(self, case: Case, reply: str) -> Sequence[Mapping[str, float]]:
        """The `label` of each step, and its `end` in characters. Empty if the reply has no complete step."""


@runtime_checkable
class SpanTeacher(Protocol):
    """Optional interface of a task: which parts of a reply its critique is about."""

    def spans(self, case: Case, reply: str) -> Sequence[tuple[int, int]]:
        """Start and end (exclusive) of each error in the reply, in characters. An omission has no span."""


@runtime_checkable
class Revisable(Protocol):
    """Optional interface of a task: prompts that contain a critique or ask for one. Each prompt is a separate turn."""

    praise: str  # the critique of a reply without errors
    placebo: str  # a critique that fits any reply and says nothing about it

    def revision_prompt(self, case: Case, reply: str, critique: str) -> PromptText:
        """A prompt that asks for a better reply, with the original prompt, a reply and the critique of that reply."""

    def critique_prompt(self, case: Case, reply: str) -> PromptText:
        """A prompt that asks for a critique, with the original prompt and a reply."""

    def conditioned_prompt(self, case: Case, critique: str) -> PromptText:
        """A prompt that asks for a reply that deserves a given critique, with the original prompt and the critique."""

    def announced(self, good: bool) -> str:
        """Text that announces a good or a bad reply. It comes after a prompt, or after a first reply."""
