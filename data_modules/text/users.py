"""Simulated users: who writes the next message of a dialogue about a prompt of your own."""

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
    """Plays the user of a chat."""

    def next_message(self, messages: Sequence[Message]) -> str | None:
        """What the user says after `messages`, of which the last is the assistant's; None ends the dialogue."""
        ...


class Unscored:
    """A dialogue in which nobody pays; it ends with the first reply."""

    def reply(self, text: str, finished: bool) -> Outcome:
        return Outcome(reward=None)


@dataclass
class UserDialogue(Unscored):
    """A dialogue with a user, in which nobody pays.

    Args:
        messages: said so far; what follows is added.
        follow_ups: what the user says after the first replies, written beforehand.
        user: says what comes after these; None ends the dialogue.
        turns: replies at most.
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
        return Outcome(reward=None, text=message, done=False)

    def _next(self) -> str | None:
        if self._replies <= len(self.follow_ups):
            return self.follow_ups[self._replies - 1]
        return None if self.user is None else self.user.next_message(self.messages)


class ModelUser:
    """A language model on this machine as the user. It is asked once for each dialogue and turn.

    Args:
        model: such as `PolicyTextExpert` with a Hugging Face folder.
        tokenizer: the model's.
        instruction: what the model is asked, with the place `{conversation}`, and maybe `{end}`.
        end: the message by which the user ends the dialogue.
        max_new: tokens of a message.
        temperature: of sampling; 0 is the likeliest message. The same conversation is always continued alike.
        chat: of `PromptFormat`.

    Raises:
        ValueError: an instruction without its place.
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
        """`User.next_message`."""
        question = self.instruction.format(conversation=conversation_text(messages), end=self.end)
        seeds = [int(sha256(question.encode()).hexdigest()[:15], 16)] if self.temperature else None
        (written,) = self.writer.write([question], self.max_new, seeds, temperature=self.temperature or 1.0)
        return None if written is None else unless_ended(written.text, self.end)


def conversation_text(messages: Sequence[Message]) -> str:
    """The messages as one text, each after its role."""
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def unless_ended(text: str, end: str) -> str | None:
    """The message; None where it is empty or is the one that ends a dialogue."""
    bare = text.strip()
    return None if not bare or bare.rstrip(".!").lower() == end.rstrip(".!").lower() else bare
