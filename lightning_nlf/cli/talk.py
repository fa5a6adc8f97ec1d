"""The loop of `chat`: lines of a person, and replies of one or two policies to each."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from typing import Protocol, runtime_checkable

import torch

from lightning_nlf.modules import PolicyModule
from lightning_nlf.terminal import printable

HELP = "/reset forgets what was said, /quit or Ctrl-D ends"


@runtime_checkable
class Speech(Protocol):
    """How a model is talked to."""

    @property
    def stops(self) -> tuple[int, ...]:
        """The ids that end a reply."""

    @property
    def turns(self) -> bool:
        """Whether a reply sees the messages before it."""

    def ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The chat, role and text of each message, up to where the next reply begins. Raises ValueError: it cannot."""

    def text(self, ids: Sequence[int]) -> str:
        """What a reply says."""


@runtime_checkable
class Speaking(Protocol):
    """A DataModule of language."""

    def speech(self, system: str | None = None) -> Speech:
        """Raises ValueError: there is no template that a system message could go through."""


@dataclass
class Talk:
    """A chat with policies. All read the same messages: the replies among them are the first policy's.

    Args:
        speakers: by the name that stands before their replies.
        max_new: tokens a reply may have, if the context has room.
        temperature: what scores are divided by; 0 is the likeliest token each time, in place of a draw.
        seed: of what is drawn.
    """

    speech: Speech
    speakers: Mapping[str, PolicyModule]
    max_new: int
    temperature: float = 0.0
    seed: int = 0
    messages: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def replies(self, text: str) -> dict[str, str]:
        """What each policy says to the user's next message.

        Raises:
            ValueError: the message cannot be encoded, or the context has no room; then it is forgotten.
        """
        chat = [*self.messages, ("user", text)]
        ids, seed = self.speech.ids(chat), self._random.getrandbits(62)
        said = {name: self._reply(module, ids, seed) for name, module in self.speakers.items()}
        if self.speech.turns:
            self.messages = [*chat, ("assistant", next(iter(said.values())))]
        return said

    def reset(self) -> None:
        self.messages = []

    def _reply(self, module: PolicyModule, ids: list[int], seed: int) -> str:
        context = module.policy.context
        room = self.max_new if context is None else min(self.max_new, context - len(ids))
        if room < 1:
            again = "type /reset, or say less" if self.messages else "say less"
            raise ValueError(f"the chat has {len(ids)} tokens, and the policy reads {context}: {again}")
        tokens, _, counts, _ = module.reply(
            torch.tensor([ids]),
            torch.tensor([len(ids)]),
            stop=self.speech.stops,
            max_new=room,
            seeds=torch.tensor([seed]),
            temperature=self.temperature or 1.0,
            deterministic=self.temperature == 0,
        )
        return self.speech.text(tokens[0, : int(counts[0])].tolist())


def talk(chat: Talk) -> None:
    """Reply to each line of standard input, of a person at a terminal or of a pipe, until it ends."""
    for line in _typed():
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            chat.reset()
        elif text.startswith("/"):
            print(f"no such command; {HELP}", file=sys.stderr)
        elif text:
            try:
                said = chat.replies(text)
            except ValueError as error:
                print("error:", printable(" ".join(str(error).split())), file=sys.stderr, flush=True)
                continue
            for name, reply in said.items():
                print(printable(f"{name}> {reply.strip()}"), flush=True)


def _typed() -> Iterator[str]:
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401  `input` edits lines and remembers them
    while True:
        try:
            yield input("you> ")
        except EOFError:
            print()
            return
