"""A chat with a model: its messages become the ids that the next reply follows, and the reply's ids a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_modules.judgements.schema import Message
from data_modules.text.prompts import Chat, PromptFormat


@dataclass(frozen=True)
class Speech:
    """How the model of a DataModule is talked to.

    Args: stops: the ids that end a reply.
    """

    format: PromptFormat
    stops: tuple[int, ...]

    @property
    def turns(self) -> bool:
        """Whether a reply sees the messages before it. Without a template each line is a prompt of its own."""
        return self.format.template is not None

    def ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The whole chat up to where the next reply begins.

        Args: messages: role and text of each, the user's last.
        Raises:
            ValueError: the tokenizer cannot encode it.
        """
        if not self.turns:
            return self.format.ids(messages[-1][1])
        return self.format.ids(tuple(Message(role, text) for role, text in messages))

    def text(self, ids: Sequence[int]) -> str:
        """What a reply says, without the token that ended it."""
        ended = bool(ids) and ids[-1] in self.stops
        return self.format.tokenizer.decode(ids[:-1] if ended else ids)


def speech(format: PromptFormat, stops: Sequence[int], system: str | None) -> Speech:
    """Raises ValueError: a system message, and no template that it could go through."""
    if system is not None:
        if format.template is None:
            raise ValueError("system: the prompts of this run go through no chat template; leave it out")
        format = replace(format, chat=Chat(system))
    return Speech(format, tuple(stops))
