"""The chat loop: one or two policies reply to each line that a person types."""

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

HELP = "/reset starts a new chat, /quit or Ctrl-D ends"


@runtime_checkable
class Speech(Protocol):
    """Converts between chat messages and token ids."""

    @property
    def stops(self) -> tuple[int, ...]:
        """The token ids that end a reply."""

    @property
    def turns(self) -> bool:
        """Whether a reply sees the messages before it."""

    def ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Encode a chat up to the place at which the next reply begins. Each message is (role, text).

        Raises:
            ValueError: A message cannot be encoded.
        """

    def text(self, ids: Sequence[int]) -> str:
        """Decode a reply."""


@runtime_checkable
class Speaking(Protocol):
    """A DataModule of a language task, which can encode a chat."""

    def speech(self, system: str | None = None) -> Speech:
        """The `Speech` of a chat with this system message.

        Raises:
            ValueError: The data has no chat template, so it cannot have a system message.
        """


@dataclass
class Talk:
    """Chats with several policies in parallel. Each policy sees the user's messages and its own replies.

    Args:
        speakers: Policies by name. The name is printed before the replies of a policy.
        max_new: Maximum number of tokens of a reply, if the context has room.
        temperature: The logits are divided by it. At 0, the likeliest token is always chosen.
        seed: Seed of the sampling.
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
        """The reply of each policy to the user's next message.

        Raises:
            ValueError: The message cannot be encoded, or the context has no room. In both cases, the chat is unchanged.
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
            advice = "type /reset or write less" if len(chat) > 1 else "write less"
            raise ValueError(f"the chat has {len(ids)} tokens, but the policy reads at most {context}: {advice}")
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
    """Reply to each line of standard input, which is a terminal or a pipe, until the input ends."""
    for line in _input_lines():
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            chat.reset()
        elif text.startswith("/"):
            print(f"unknown command {printable(text)}: {HELP}", file=sys.stderr)
        elif text:
            try:
                replies = chat.replies(text)
            except ValueError as error:
                print("error:", printable(" ".join(str(error).split())), file=sys.stderr, flush=True)
                continue
            for name, reply in replies.items():
                print(printable(f"{name}> {reply.strip()}"), flush=True)


def _input_lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401  gives `input` line editing and a history
    while True:
        try:
            yield input("you> ")
        except EOFError:
            print()
            return
