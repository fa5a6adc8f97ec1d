"""Held-out prompts of a file as a task: they are played, and nobody pays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_modules.judgements.schema import PromptText
from data_modules.judgements.splitting import prompt_digest
from data_modules.text.environment import Case, Dialogue, Split
from data_modules.text.prompts import PromptFormat
from data_modules.text.users import Unscored


@dataclass(frozen=True)
class HeldOutLine:
    """What is played of a line, and what it says should have been replied."""

    prompt: PromptText
    expected: str | None
    id: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # what a judge of the reply may need


class HeldOutPrompts:
    """A task of one turn, made of the prompts of held-out lines. Each prompt is one case, however many lines it has.

    Args: held_out: the lines of each split.
    """

    turns = 1

    def __init__(self, held_out: Mapping[Split, Sequence[HeldOutLine]]) -> None:
        self._cases: dict[Split, list[Case]] = {}
        self._expected: dict[str, str | None] = {}
        for split, lines in held_out.items():
            by_prompt: dict[PromptText, HeldOutLine] = {}
            for line in lines:
                by_prompt.setdefault(line.prompt, line)
            ids = _ids(list(by_prompt.values()))
            self._cases[split] = [
                Case(id, line.prompt, line.facts) for id, line in zip(ids, by_prompt.values(), strict=True)
            ]
            self._expected |= {id: line.expected for id, line in zip(ids, by_prompt.values(), strict=True)}

    def cases(self, split: Split) -> Sequence[Case]:
        return self._cases.get(split, [])

    def begin(self, case: Case) -> Dialogue:
        return Unscored()

    def corpus(self) -> Iterator[str]:
        """Nothing: what is held out makes no tokenizer."""
        return iter(())

    def demonstrations(self, split: Split) -> Sequence[tuple[PromptText, str]]:
        return []

    def expected(self, case: Case) -> str | None:
        return self._expected.get(case.id)

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        return None


def _ids(lines: Sequence[HeldOutLine]) -> list[str]:
    """The line's own id where no other has it, else one of the prompt."""
    names = [line.id for line in lines]
    return [
        line.id if line.id is not None and names.count(line.id) == 1 else prompt_digest(line.prompt)[:12]
        for line in lines
    ]


def with_room(lines: Sequence[HeldOutLine], format: PromptFormat, reply: int, room: int) -> list[HeldOutLine]:
    """Lines whose prompt leaves room for a reply of so many tokens; if there is none such, for one token.

    Args: room: tokens of prompt and reply together.
    """
    lengths: list[int] = []
    for line in lines:
        try:
            lengths.append(len(format.ids(line.prompt)))
        except ValueError:  # a word that the tokenizer does not know: learned from is nothing of the line
            lengths.append(room)
    for least in (reply, 1):
        if chosen := [line for line, length in zip(lines, lengths, strict=True) if length + least <= room]:
            return chosen
    return []
