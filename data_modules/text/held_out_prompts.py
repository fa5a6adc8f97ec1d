"""A text task made of the held-out prompts in a file; no rule scores replies."""

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
    """The prompt and the expected response of a held-out line."""

    prompt: PromptText
    expected: str | None
    id: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # facts that a judge of the reply may need


class HeldOutPrompts:
    """A task of one turn with the prompts of held-out lines. Lines with the same prompt form one case.

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
        """No texts, because the tokenizer must not be built from held-out text."""
        return iter(())

    def demonstrations(self, split: Split) -> Sequence[tuple[PromptText, str]]:
        return []

    def expected(self, case: Case) -> str | None:
        return self._expected.get(case.id)

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        return None


def _ids(lines: Sequence[HeldOutLine]) -> list[str]:
    """An id for each line: the line's own id if it is unique, else an id made from the prompt's digest."""
    names = [line.id for line in lines]
    return [
        line.id if line.id is not None and names.count(line.id) == 1 else prompt_digest(line.prompt)[:12]
        for line in lines
    ]


def with_room(lines: Sequence[HeldOutLine], format: PromptFormat, reply: int, room: int) -> list[HeldOutLine]:
    """Lines whose prompt leaves room for a reply of `reply` tokens; if there are none, lines with room for one token.

    Args: room: maximum number of tokens of prompt and reply together.
    """
    lengths: list[int] = []
    for line in lines:
        try:
            lengths.append(len(format.ids(line.prompt)))
        except ValueError:  # an unknown word, so training does not use the line either
            lengths.append(room)
    for least in (reply, 1):
        if chosen := [line for line, length in zip(lines, lengths, strict=True) if length + least <= room]:
            return chosen
    return []
