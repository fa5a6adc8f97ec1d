"""What a teacher says of one prompt: the fields of a judgement."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from data_modules.judgements.ranking import parse_ranking

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str  # one of ROLES
    content: str


PromptText = str | tuple[Message, ...]  # one text, or the messages of a chat


def readable(prompt: PromptText) -> str:
    """A prompt as one text for people and judges: the role before each message of a chat, if there are several."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content.strip()}" for message in prompt)


@dataclass(frozen=True)
class Span:
    """The characters [start, end) of a response, which a critique points at."""

    start: int
    end: int


@dataclass(frozen=True)
class Step:
    """A step of a response: it ends before character `end` and began where the one before ended."""

    end: int
    label: float


@dataclass(frozen=True)
class Judgement:
    """One judged prompt. What has a value for each response is None, or a tuple as long as `responses`."""

    prompt: PromptText
    responses: tuple[str, ...] = ()  # at least one, or `expected`
    score: tuple[float | None, ...] | None = None  # the higher the better
    critique: tuple[str | None, ...] | None = None
    expected: str | None = None  # what the response should have been
    ranking: str | None = None  # "B > C = D > A", best first
    preference: float | None = None  # of two responses: the probability that A is better than B
    spans: tuple[tuple[Span, ...] | None, ...] | None = None
    steps: tuple[tuple[Step, ...] | None, ...] | None = None  # labels of the steps of a response, in order
    source: str | None = None  # who said so: a person's id, a rule, an environment, a model
    episode: str | None = None  # the recorded rollout that this is about
    meta: dict[str, Any] = field(default_factory=dict)
    id: str | None = None  # unique within a file
    where: str = field(default="", compare=False)  # FILE:LINE it was read from

    @cached_property
    def ranks(self) -> tuple[int, ...] | None:
        """The rank of each response, 0 for the best; None where nobody put them in order."""
        return None if self.ranking is None else parse_ranking(self.ranking, len(self.responses))

    def of(self, name: Literal["score", "critique", "spans", "steps"], response: int) -> Any:
        """What is said of one response; None where nothing is."""
        values = getattr(self, name)
        return None if values is None else values[response]

    def finished(self, response: int) -> bool:
        """Whether a response ended by itself: so says `meta.finished`, true or false, or a list with one a response.

        Raises:
            ValueError: it says anything else.
        """
        value = self.meta.get("finished", True)
        values = value if isinstance(value, list) else [value] * len(self.responses)
        if len(values) != len(self.responses) or not isinstance(values[response], bool):
            raise ValueError("meta: finished must be true or false, or a list of these with one for each response")
        return values[response]

    def record(self) -> dict[str, Any]:
        """The line of a file: what is there, and without a list around what a lone response has."""
        record = {name: plain(getattr(self, name)) for name in FIELDS}
        if len(self.responses) == 1:
            record |= {name: record[name][0] for name in _PER_RESPONSE if record[name] is not None}
        return {name: value for name, value in record.items() if value not in (None, [], {})}


FIELDS = tuple(f.name for f in fields(Judgement) if f.name != "where")
_PER_RESPONSE = ("score", "critique", "spans", "steps")


def plain(value: Any) -> Any:
    """Tuples as lists, and messages, spans and steps as objects, as JSON has them."""
    if isinstance(value, tuple):
        return [plain(x) for x in value]
    if isinstance(value, Message | Span | Step):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return value
