"""What a conversion is told, and the account of what it could not carry over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from data_modules.feedback.formats.value import Value
from data_modules.judgements.fields import Scale, cut
from data_modules.terminal import on_one_line

NO_ANSWER = "records without an answer"
NO_PROMPT = "records without a prompt"
LISTED = 30  # fields that the account names


class LeftOut(Exception):
    """A record that cannot be carried over, though nothing is wrong with it: its kind, in the plural."""


@dataclass(frozen=True)
class Options:
    """What only the reader of a file can know.

    Args:
        passages: QA-Feedback: the passages stand in the prompt.
        prompt, responses: Argilla and Label Studio: the fields with the prompt and with the responses.
        critique, expected: the same: the question whose answer is the critique, or the expected response.
    """

    passages: bool = False
    prompt: str | None = None
    responses: tuple[str, ...] = ()
    critique: str | None = None
    expected: str | None = None


@dataclass
class Account:
    """Counts by kind, each with the place of the first. Notes of a record count once it is through."""

    options: Options = Options()
    scale: Scale | None = None  # of the scores, where the format has one
    records: int = 0  # read so far, the wrong ones too
    _counts: Counter[str] = field(init=False, default_factory=Counter)
    _first: dict[str, str] = field(init=False, default_factory=dict)
    _fields: Counter[str] = field(init=False, default_factory=Counter)
    _open: Counter[str] = field(init=False, default_factory=Counter)

    def note(self, kind: str, count: int = 1) -> None:
        """Adds to a kind, which reads well after a number: "image parts left out"."""
        self._open[kind] += count

    def close(self, place: str, record: Value | None = None) -> None:
        """Ends a record: its notes count, and so do the fields of it that nobody read."""
        self.records += 1
        for kind, count in self._open.items():
            self._counts[kind] += count
            self._first.setdefault(kind, place)
        self._open.clear()
        if record is not None:
            self._fields.update(dict.fromkeys(record.unread(), 1))

    def drop(self) -> None:
        """Ends a record that is wrong: its notes do not count."""
        self.records += 1
        self._open.clear()

    def lines(self) -> list[str]:
        """The account, a kind a line."""
        lines = [f"{count} {kind}: first in {self._first[kind]}" for kind, count in self._counts.items()]
        if self._fields:
            names = [f"{cut(name)} ({count})" for name, count in self._fields.most_common(LISTED)]
            rest = [f"and {len(self._fields) - LISTED} more"] if len(self._fields) > LISTED else []
            lines.append(f"fields left out (in how many records): {', '.join([*names, *rest])}")
        return [on_one_line(line) for line in lines]
