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
    """Chats with policies, side by side: each reads what the user said and what it replied itself.

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
    chats: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # role and text, by speaker

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.reset()

    def replies(self, text: str) -> dict[str, str]:
        """What each policy says to the user's next message.

        Raises:
            ValueError: the message cannot be encoded, or the context has no room; then it is forgotten.
        """
        chats = {name: [*chat, ("user", text)] for name, chat in self.chats.items()}
        seed = self._random.getrandbits(62)
        replies = {name: self._reply(module, chats[name], seed) for name, module in self.speakers.items()}
        if self.speech.turns:
            self.chats = {name: [*chats[name], ("assistant", reply)] for name, reply in replies.items()}
        return replies

    def reset(self) -> None:
        self.chats = {name: [] for name in self.speakers}

    def _reply(self, module: PolicyModule, chat: Sequence[tuple[str, str]], seed: int) -> str:
        ids, context = self.speech.ids(chat), module.policy.context
        room = self.max_new if context is None else min(self.max_new, context - len(ids))
        if room < 1:
            again = "type /reset, or say less" if len(chat) > 1 else "say less"
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
                replies = chat.replies(text)
            except ValueError as error:
                print("error:", printable(" ".join(str(error).split())), file=sys.stderr, flush=True)
                continue
            for name, reply in replies.items():
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
