"""Prompts from a JSONL file, with no rule that scores replies: the task to start from with your own data."""

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
    """A line of a prompt file."""

    prompt: PromptText
    id: str | None
    expected: str | None
    facts: Mapping[str, Any]
    where: str  # FILE:LINE
    follow_ups: tuple[str, ...] = ()  # what the user says after the first reply, after the second …


class PromptFile(ChatWords):
    """Your own prompts as a task, read from JSON lines.

    A line has a `prompt`, a text or the messages of a chat, and may have an `id`, the `expected` response, and `facts`:
    an object of what a judge must know, such as a reference answer. With `follow_ups`, a list of texts, the user goes
    on after the reply, and the prompt is a dialogue of several turns. A feedback file will do as well: its other fields
    are not read. No rule scores a reply: a reward model, a judge or people may, and an objective that needs a score
    says so where nobody does.

    Args:
        path: of the prompts to train on.
        val_path, test_path: files of held-out prompts.
        val_share, test_share: of the prompts of `path`, held out where there is no such file. Which prompts these are
            depends on their texts alone: the same prompt is never on two sides, whatever the order of the lines.
        wording: the sentences around a critique, for methods that revise.
        user: who goes on after the follow-ups, such as `ModelUser`; `turns` replies at most.
        turns: replies of a dialogue with a `user`.

    Raises:
        ValueError: a share outside [0, 1), or both leave nothing; once prompts are asked for, no such file, a line that
            is wrong (file, line, field and what to do), or a held-out prompt that is trained on as well.
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
            raise ValueError("turns: more than one of a dialogue with a `user`, and one without; give both or neither")
        shares(val_share=val_share, test_share=test_share)
        if val_share + test_share >= 1:
            raise ValueError(f"val_share, test_share: {val_share} and {test_share} leave nothing to train on")
        self.paths: dict[Split, str | None] = {"train": path, "val": val_path, "test": test_path}
        self.shares: dict[Split, float] = {"val": val_share, "test": test_share}
        self.user, self._turns = user, turns
        super().__init__(wording or Wording())

    # ---- prompts

    @property
    def turns(self) -> int:
        """Replies that a dialogue has at most."""
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
        """Prompts with an expected response, and it."""
        return [(line.prompt, line.expected) for line in self._lines[split] if line.expected is not None]

    def expected(self, case: Case) -> str | None:
        return self._expected.get(case.id)

    def critique(self, case: Case, reply: str, seed: int) -> str | None:
        """Raises ValueError: nothing is known of what a reply should be; a critic is asked instead."""
        raise ValueError(
            "critic: PromptFile says nothing of replies, so somebody else must: give a critic, such as "
            "data_modules.text.ModelCritic, data_modules.feedback.FileCritic or "
            "data_modules.feedback.providers.EndpointCritic"
        )

    # ---- from the files

    @cached_property
    def _expected(self) -> dict[str, str]:
        every = (line for lines in self._lines.values() for line in lines)
        return {line.id or "": line.expected for line in every if line.expected is not None}

    @cached_property
    def _follow_ups(self) -> dict[str, tuple[str, ...]]:
        return {line.id or "": line.follow_ups for lines in self._lines.values() for line in lines}

    @cached_property
    def _lines(self) -> dict[Split, list[PromptLine]]:
        """By split, each line with an id."""
        given = {split: [] if path is None else _read(path) for split, path in self.paths.items()}
        wanted = {split: share for split, share in self.shares.items() if self.paths[split] is None}
        held = split_prompts([line.prompt for line in given["train"]], list(wanted.values()))
        for split, prompts in zip(wanted, held, strict=True):
            given[split] = [line for line in given["train"] if line.prompt in prompts]
        apart = set().union(*held)
        given["train"] = [line for line in given["train"] if line.prompt not in apart]
        return _identified(given)


def _read(path: str) -> list[PromptLine]:
    lines, bad = scan_lines(path, read_line)
    if bad:
        raise ValueError(listed(path, bad))
    if not lines:
        raise ValueError(f"path: there is no prompt in {path}")
    return lines


def read_line(record: Any, where: str) -> PromptLine:
    """The prompt in a line.  Raises Faults: all that is wrong with it."""
    if not isinstance(record, dict):
        raise Faults([f'a line is an object like {{"prompt": "…"}}, not {kind_of(record)}'])
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
        faults.append("prompt: its last message is the assistant's; take it out, and give it as expected")
    if faults:
        raise Faults(faults)
    optional = {"facts": values["facts"] or {}, "follow_ups": values["follow_ups"] or ()}
    return PromptLine(**values | optional, where=where)


def _read_facts(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f'must be an object like {{"reference": "…"}}, is {kind_of(value)}')
    return value


_READERS: dict[str, Callable[[Any], Any]] = {  # of a line; the fields of a feedback file may stand beside them
    "prompt": read_prompt,
    "id": read_text,
    "expected": read_text,
    "facts": _read_facts,
    "follow_ups": read_responses,
}


def _identified(given: Mapping[Split, list[PromptLine]]) -> dict[Split, list[PromptLine]]:
    """With an id for each line, by its prompt where the file gives none.

    Raises:
        ValueError: one id in two files, or a prompt on two sides.
    """
    first: dict[PromptText, tuple[Split, str]] = {}  # where a prompt stands
    owner: dict[str, str] = {}  # where an id stands
    repeats: Counter[str] = Counter()
    identified: dict[Split, list[PromptLine]] = {split: [] for split in given}
    faults: list[str] = []
    for split, line in ((split, line) for split, lines in given.items() for line in lines):
        side, where = first.setdefault(line.prompt, (split, line.where))
        if side != split:
            faults.append(f"{line.where}: prompt: is that of {where} as well; a held-out prompt must be new")
        digest = prompt_digest(line.prompt)[:12]
        repeats[digest] += line.id is None
        name = line.id or (digest if repeats[digest] == 1 else f"{digest}-{repeats[digest]}")
        if owner.setdefault(name, line.where) != line.where:
            faults.append(f"{line.where}: id: {name!r} is that of {owner[name]} as well; make it unique")
        identified[split].append(replace(line, id=name))
    if faults:
        raise ValueError(enumerated(faults))
    return identified
