"""Simulated users, who write the user's messages in a dialogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

from data_modules.judgements.schema import Message
from data_modules.text.environment import Outcome
from data_modules.text.prompts import Chat, PromptFormat
from data_modules.text.templates import refuse_template
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.writer import Writer
from lightning_nlf.batch import Replier
from lightning_nlf.numbers import NonNegative, Size

INSTRUCTION = (
    "This is a conversation between a user and an assistant.\n\n{conversation}\n\n"
    "Write the next message of the user: a question about the last answer, or a new one. Give the message alone. "
    "If the user has no further question, write only: {end}"
)
END = "Thank you."


class User(Protocol):
    """Interface of a simulated user in a chat."""

    def next_message(self, messages: Sequence[Message]) -> str | None:
        """Write the user's message after `messages`, which end with the assistant's; None ends the dialogue."""
        ...


class Unscored:
    """A dialogue of one reply, without a reward."""

    def reply(self, text: str, finished: bool) -> Outcome:
        return Outcome(reward=None)


@dataclass
class UserDialogue(Unscored):
    """A dialogue with a simulated user, without rewards.

    Args:
        messages: the messages so far; new ones are appended.
        follow_ups: the user's messages after the first replies, written in advance.
        user: writes the messages after the follow-ups; None = the dialogue ends after the follow-ups.
        turns: maximum number of replies.
    """

    messages: list[Message]
    follow_ups: Sequence[str] = ()
    user: User | None = None
    turns: int = 1
    _replies: int = field(default=0, init=False)

    def reply(self, text: str, finished: bool) -> Outcome:
        self._replies += 1
        self.messages.append(Message("assistant", text))
        message = None if self._replies >= self.turns else self._next()
        if message is None:
            return Outcome(reward=None)
        self.messages.append(Message("user", message))
        return Outcome(reward=None, text=message, over=False)

    def _next(self) -> str | None:
        if self._replies <= len(self.follow_ups):
            return self.follow_ups[self._replies - 1]
        return None if self.user is None else self.user.next_message(self.messages)


class ModelUser:
    """A local language model as the user. The model is called separately for each dialogue and turn.

    Args:
        model: model that writes the messages, such as `PolicyTextExpert` with a Hugging Face folder.
        tokenizer: the model's tokenizer.
        instruction: the prompt for the model, with the placeholder `{conversation}`, and optionally `{end}`.
        end: the message with which the user ends the dialogue.
        max_new: maximum number of tokens in a message.
        temperature: sampling temperature; 0 = greedy decoding. The same conversation always gets the same message.
        chat: see `PromptFormat`.

    Raises:
        ValueError: the instruction lacks its placeholder, or has an unknown one.
    """

    def __init__(
        self,
        model: Replier,
        tokenizer: Tokenizer,
        instruction: str = INSTRUCTION,
        end: str = END,
        max_new: Size = 64,
        temperature: NonNegative = 0.0,
        chat: bool | Chat | None = None,
    ) -> None:
        refuse_template("user.instruction", instruction, ("conversation",), ("end",))
        self.instruction, self.end = instruction, end
        self.max_new, self.temperature = max_new, temperature
        self.writer = Writer(model, PromptFormat(tokenizer, chat), (tokenizer.eos,))

    def next_message(self, messages: Sequence[Message]) -> str | None:
        """See `User.next_message`."""
        question = self.instruction.format(conversation=conversation_text(messages), end=self.end)
        seeds = [int(sha256(question.encode()).hexdigest()[:15], 16)] if self.temperature else None
        (message,) = self.writer.write([question], self.max_new, seeds, temperature=self.temperature or 1.0)
        return None if message is None else unless_ended(message.text, self.end)


def conversation_text(messages: Sequence[Message]) -> str:
    """The messages as one text, with the role before each message."""
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def unless_ended(text: str, end: str) -> str | None:
    """The message without surrounding white space; None if the message is empty or equals `end`."""

    bare = text.strip()
    return None if not bare or bare.rstrip(".!").lower() == end.rstrip(".!").lower() else bare
