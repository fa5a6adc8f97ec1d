"""Your own prompts from a JSONL file as a text task; no rule scores replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from data_modules.judgements.fields import kind_of, read_prompt, read_responses, read_text
from data_modules.judgements.files import enumerated, listed, scan_lines
from data_modules.judgements.parsing import Faults, unknown_field
from data_modules.judgements.schema import FIELDS, Message, PromptText
from data_modules.judgements.splitting import prompt_digest, split_prompts
from data_modules.ranges import shares
from data_modules.text.environment import Case, Dialogue, Split
from data_modules.text.prompts import texts_of
from data_modules.text.users import User, UserDialogue
from data_modules.text.wording import ChatWords, Wording
from lightning_nlf.numbers import BelowOne, Size


@dataclass(frozen=True)
class PromptLine:
    """The contents of one line in a prompt file."""

    prompt: PromptText
    id: str | None
    expected: str | None
    facts: Mapping[str, Any]
    where: str  # FILE:LINE
    follow_ups: tuple[str, ...] = ()  # the user's message after the first reply, after the second reply, and so on


class PromptFile(ChatWords):
    """Your own prompts as a task, read from JSON lines.

    A line has a `prompt`, which is a text or the messages of a chat. Optional fields are `id`, the `expected` response,
    and `facts`, an object with what a judge needs, such as a reference answer. `follow_ups` is a list with the user's
    message after each reply; such a line is a dialogue of several turns. A feedback file can be used too; its other
    fields are ignored. The task has no rule that scores replies. A reward model, a judge or people can score them. An
    objective that needs scores raises an error if there are none.

    Args:
        path: file with the prompts to train on.
        val_path, test_path: files with held-out prompts for validation and test.
        val_share, test_share: share of the prompts in `path` that is held out if `val_path` or `test_path` is not
            given. The choice depends only on the text of a prompt, so the order of lines does not matter, and equal
            prompts stay together.
        wording: the texts around a critique, for methods that revise replies.
        user: simulated user, such as `ModelUser`, who writes more messages after the follow-ups, up to `turns` replies.
        turns: maximum number of replies in a dialogue with a `user`.

    Raises:
        ValueError: a share is outside [0, 1), or nothing is left to train on; or when prompts are first used, a file is
            missing, a line is malformed (the message gives file, line, field and what to do), or a held-out prompt is
            also a training prompt.
    """

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        test_path: str | None = None,
        val_share: BelowOne = 0.1,
        test_share: BelowOne = 0.1,
        wording: Wording | None = None,
        user: User | None = None,
        turns: Size = 1,
    ) -> None:
        if (user is None) != (turns == 1):
            raise ValueError("turns: more than 1 turn needs a `user`, and a `user` needs more than 1; set both or none")
        shares(val_share=val_share, test_share=test_share)
        if val_share + test_share >= 1:
            raise ValueError(
                f"val_share, test_share: {val_share} and {test_share} leave nothing to train on; lower one of them"
            )
        self.paths: dict[Split, str | None] = {"train": path, "val": val_path, "test": test_path}
        self.shares: dict[Split, float] = {"val": val_share, "test": test_share}
        self.user, self._turns = user, turns
        super().__init__(wording or Wording())

    # ---- prompts

    @property
    def turns(self) -> int:
        """The maximum number of replies in a dialogue."""
        lengths = [len(line.follow_ups) for lines in self._lines.values() for line in lines]
        return max(self._turns, 1 + max(lengths))

    def cases(self, split: Split) -> Sequence[Case]:
        return [Case(line.id or "", line.prompt, line.facts) for line in self._lines[split]]

    def begin(self, case: Case) -> Dialogue:
        messages = (Message("user", case.prompt),) if isinstance(case.prompt, str) else case.prompt
        follow_ups = self._follow_ups.get(case.id, ())
        return UserDialogue(list(messages), follow_ups, self.user, max(self._turns, 1 + len(follow_ups)))

    def corpus(self) -> Iterator[str]:
        for lines in self._lines.values():
            for line in lines:
                yield from (*texts_of(line.prompt), *line.follow_ups)
                yield from filter(None, [line.expected])
        yield from self.wording.texts()

    def demonstrations(self, split: Split) -> Sequence[tuple[PromptText, str]]:
        """The prompts that have an expected response, with that response."""
        return [(line.prompt, line.expected) for line in self._lines[split] if line.expected is not None]

    def expected(self, case: Case) -> str | None:
        return self._expected.get(case.id)

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        """Always fail: a file of prompts has no critiques, so a critic is needed.  Raises ValueError."""
        raise ValueError(
            "critic: PromptFile has no critiques of replies: give a critic, such as "
            "data_modules.text.ModelCritic, data_modules.feedback.FileCritic or "
            "data_modules.feedback.providers.EndpointCritic"
        )

    # ---- reading

    @cached_property
    def _expected(self) -> dict[str, str]:
        every = (line for lines in self._lines.values() for line in lines)
        return {line.id or "": line.expected for line in every if line.expected is not None}

    @cached_property
    def _follow_ups(self) -> dict[str, tuple[str, ...]]:
        return {line.id or "": line.follow_ups for lines in self._lines.values() for line in lines}

    @cached_property
    def _lines(self) -> dict[Split, list[PromptLine]]:
        """The lines of each split; every line has an id."""
        lines = {split: [] if path is None else _read(path) for split, path in self.paths.items()}
        split_off = {split: share for split, share in self.shares.items() if self.paths[split] is None}
        held_out = split_prompts([line.prompt for line in lines["train"]], list(split_off.values()))
        for split, prompts in zip(split_off, held_out, strict=True):
            lines[split] = [line for line in lines["train"] if line.prompt in prompts]
        apart = set().union(*held_out)
        lines["train"] = [line for line in lines["train"] if line.prompt not in apart]
        return _identified(lines)


def _read(path: str) -> list[PromptLine]:
    lines, bad = scan_lines(path, read_line)
    if bad:
        raise ValueError(listed(path, bad))
    if not lines:
        raise ValueError(f"path: {path} has no prompts; give a file with at least one line")
    return lines


def read_line(record: Any, where: str) -> PromptLine:
    """Parse a line of a prompt file.  Raises Faults: all errors in the line."""
    if not isinstance(record, dict):
        raise Faults([f'a line must be an object like {{"prompt": "…"}}, is {kind_of(record)}'])
    names = tuple(_READERS)
    faults = [unknown_field(name, names) for name in record if name not in (*names, *FIELDS)]
    values: dict[str, Any] = dict.fromkeys(names)
    for name, read in _READERS.items():
        if record.get(name) is not None:
            try:
                values[name] = read(record[name])
            except ValueError as error:
                faults.append(f"{name}: {error}")
    if record.get("prompt") is None:
        faults.append("prompt: is missing; every line needs one")
    elif isinstance(values["prompt"], tuple) and values["prompt"][-1].role == "assistant":
        faults.append("prompt: its last message is the assistant's; remove it, and give it as expected")
    if faults:
        raise Faults(faults)
    optional = {"facts": values["facts"] or {}, "follow_ups": values["follow_ups"] or ()}
    return PromptLine(**values | optional, where=where)


def _read_facts(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f'must be an object like {{"reference": "…"}}, is {kind_of(value)}')
    return value


_READERS: dict[str, Callable[[Any], Any]] = {  # reader of each field; other fields of a feedback file are allowed
    "prompt": read_prompt,
    "id": read_text,
    "expected": read_text,
    "facts": _read_facts,
    "follow_ups": read_responses,
}


def _identified(lines: Mapping[Split, list[PromptLine]]) -> dict[Split, list[PromptLine]]:
    """Give every line an id: a line without one gets an id made from its prompt.

    Raises:
        ValueError: two lines have the same id, or two splits have the same prompt.
    """
    first: dict[PromptText, tuple[Split, str]] = {}  # prompt → its split and place
    owner: dict[str, str] = {}  # id → the place of its line
    repeats: Counter[str] = Counter()
    identified: dict[Split, list[PromptLine]] = {split: [] for split in lines}
    faults: list[str] = []
    for split, line in ((split, line) for split, of_split in lines.items() for line in of_split):
        side, where = first.setdefault(line.prompt, (split, line.where))
        if side != split:
            faults.append(f"{line.where}: prompt: is also in {where}; a held-out prompt must not be a training prompt")
        digest = prompt_digest(line.prompt)[:12]
        repeats[digest] += line.id is None
        name = line.id or (digest if repeats[digest] == 1 else f"{digest}-{repeats[digest]}")
        if owner.setdefault(name, line.where) != line.where:
            faults.append(f"{line.where}: id: {name!r} is also in {owner[name]}; make it unique")
        identified[split].append(replace(line, id=name))
    if faults:
        raise ValueError(enumerated(faults))
    return identified
