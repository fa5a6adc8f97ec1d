"""Options of a conversion, and an account of everything that the conversion leaves out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from data_modules.feedback.formats.value import Value
from data_modules.judgements.fields import Scale, cut
from data_modules.terminal import on_one_line

NO_ANSWER = "records without an answer"
NO_PROMPT = "records without a prompt"
LISTED = 30  # maximum number of fields that the account names


class LeftOut(Exception):
    """A valid record cannot be converted. The message is the kind of record, in the plural."""


@dataclass(frozen=True)
class Options:
    """Conversion options that the file itself does not determine.

    Args:
        passages: for QA-Feedback, whether to put the passages into the prompt.
        prompt, responses: for Argilla and Label Studio, the names of the fields with the prompt and the responses.
        critique, expected: for Argilla and Label Studio, the names of the questions whose answers are the critique and
            the expected response.
    """

    passages: bool = False
    prompt: str | None = None
    responses: tuple[str, ...] = ()
    critique: str | None = None
    expected: str | None = None


@dataclass
class Account:
    """Counts of everything that was left out, by kind, with the place of the first occurrence."""

    options: Options = Options()
    scale: Scale | None = None  # scale of the scores, if the format defines one
    records: int = 0  # number of records so far, including invalid ones
    _counts: Counter[str] = field(init=False, default_factory=Counter)
    _first: dict[str, str] = field(init=False, default_factory=dict)
    _fields: Counter[str] = field(init=False, default_factory=Counter)
    _open: Counter[str] = field(init=False, default_factory=Counter)

    def note(self, kind: str, count: int = 1) -> None:
        """Count something that was left out. The kind must read well after a number: "image parts left out"."""
        self._open[kind] += count

    def close(self, place: str, record: Value | None = None) -> None:
        """End a record: add its notes, and the fields that were not read, to the counts."""
        self.records += 1
        for kind, count in self._open.items():
            self._counts[kind] += count
            self._first.setdefault(kind, place)
        self._open.clear()
        if record is not None:
            self._fields.update(dict.fromkeys(record.unread(), 1))

    def drop(self) -> None:
        """End an invalid record without counting the record's notes."""
        self.records += 1
        self._open.clear()

    def lines(self) -> list[str]:
        """The account as text, one kind per line."""
        lines = [f"{count} {kind}: first in {self._first[kind]}" for kind, count in self._counts.items()]
        if self._fields:
            names = [f"{cut(name)} ({count})" for name, count in self._fields.most_common(LISTED)]
            rest = [f"and {len(self._fields) - LISTED} more"] if len(self._fields) > LISTED else []
            lines.append(f"fields left out (in how many records): {', '.join([*names, *rest])}")
        return [on_one_line(line) for line in lines]
