"""Schema of a judgement: a teacher's feedback on the responses to one prompt."""

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


PromptText = str | tuple[Message, ...]  # a text, or the messages of a chat


def readable(prompt: PromptText) -> str:
    """A prompt as one text for people and judges; with several messages, the role precedes each message."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content.strip()}" for message in prompt)


@dataclass(frozen=True)
class Span:
    """The characters [start, end) of a response that a critique is about."""

    start: int
    end: int


@dataclass(frozen=True)
class Step:
    """A labelled step of a response. It begins at the end of the previous step, and ends before character `end`."""

    end: int
    label: float


@dataclass(frozen=True)
class Judgement:
    """A teacher's feedback on one prompt. Fields with one value per response are None or as long as `responses`."""

    prompt: PromptText
    responses: tuple[str, ...] = ()  # may be empty if there is `expected`
    score: tuple[float | None, ...] | None = None  # higher is better
    critique: tuple[str | None, ...] | None = None
    expected: str | None = None  # the expected response
    ranking: str | None = None  # "B > C = D > A", best first
    preference: float | None = None  # for two responses, the probability that A is better than B
    spans: tuple[tuple[Span, ...] | None, ...] | None = None
    steps: tuple[tuple[Step, ...] | None, ...] | None = None  # labels of each response's steps, in order
    source: str | None = None  # the author: a person's id, a rule, an environment, a model
    episode: str | None = None  # the recorded episode that the feedback is about
    meta: dict[str, Any] = field(default_factory=dict)
    id: str | None = None  # unique within a file
    where: str = field(default="", compare=False)  # FILE:LINE that the judgement was read from

    @cached_property
    def ranks(self) -> tuple[int, ...] | None:
        """The rank of each response, 0 for the best; None without a ranking."""
        return None if self.ranking is None else parse_ranking(self.ranking, len(self.responses))

    def of(self, name: Literal["score", "critique", "spans", "steps"], response: int) -> Any:
        """The value of a field for one response; None if the response has no value."""
        values = getattr(self, name)
        return None if values is None else values[response]

    def finished(self, response: int) -> bool:
        """Whether a response was not cut off, by `meta.finished`: a truth value, or a list with one per response.

        Raises:
            ValueError: `meta.finished` has a different form.
        """
        value = self.meta.get("finished", True)
        values = value if isinstance(value, list) else [value] * len(self.responses)
        if len(values) != len(self.responses) or not isinstance(values[response], bool):
            raise ValueError("meta: finished must be true or false, or a list of these with one for each response")
        return values[response]

    def record(self) -> dict[str, Any]:
        """The JSON object for a line of a file, without empty fields, and without lists for a single response."""
        record = {name: plain(getattr(self, name)) for name in FIELDS}
        if len(self.responses) == 1:
            record |= {name: record[name][0] for name in _PER_RESPONSE if record[name] is not None}
        return {name: value for name, value in record.items() if value not in (None, [], {})}


FIELDS = tuple(f.name for f in fields(Judgement) if f.name != "where")
_PER_RESPONSE = ("score", "critique", "spans", "steps")


def plain(value: Any) -> Any:
    """Convert a value to JSON types: tuples become lists; messages, spans and steps become objects."""
    if isinstance(value, tuple):
        return [plain(x) for x in value]
    if isinstance(value, Message | Span | Step):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return value
