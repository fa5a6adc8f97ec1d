"""Chat with a model: encode messages as a prompt, and decode the reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_modules.judgements.schema import Message
from data_modules.text.prompts import Chat, PromptFormat


@dataclass(frozen=True)
class Speech:
    """Prompt format and stop tokens for a chat with a model, as the DataModule uses them in training.

    Args: stops: the ids that end a reply.
    """

    format: PromptFormat
    stops: tuple[int, ...]

    @property
    def turns(self) -> bool:
        """Whether the model sees earlier messages. Without a chat template each message is a separate prompt."""
        return self.format.template is not None

    def ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The ids of the whole chat, up to the start of the next reply.

        Args: messages: (role, text) of each message; the last message is the user's.
        Raises:
            ValueError: the tokenizer cannot encode the messages.
        """
        if not self.turns:
            return self.format.ids(messages[-1][1])
        return self.format.ids(tuple(Message(role, text) for role, text in messages))

    def text(self, ids: Sequence[int]) -> str:
        """The text of a reply, without its stop token."""
        ended = bool(ids) and ids[-1] in self.stops
        return self.format.tokenizer.decode(ids[:-1] if ended else ids)


def speech(format: PromptFormat, stops: Sequence[int], system: str | None) -> Speech:
    """The settings for a chat with a model.  Raises ValueError: `system` is given, and there is no chat template."""
    if system is not None:
        if format.template is None:
            raise ValueError("system: the prompts of this run use no chat template; leave system out")
        format = replace(format, chat=Chat(system))
    return Speech(format, tuple(stops))
