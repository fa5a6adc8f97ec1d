"""Chat template or plain text: how a prompt becomes the ids that a reply follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache

from data_modules.judgements.schema import Message, PromptText
from data_modules.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chat:
    """Prompts go through the tokenizer's chat template.

    Args:
        system: the system message of every chat that does not bring one of its own.
    """

    system: str | None = None


@dataclass(frozen=True)
class PromptFormat:
    """The one way from a prompt to token ids, whether it is a text or the messages of a chat.

    Args:
        chat: a text is the user's message of the chat template, as instruct models expect it. True and `Chat()` say
            the same; None is True where the tokenizer has a template. With False a text stays a text.
        suffix: added to the end of every prompt; of a chat to the end of its last message.
    """

    tokenizer: Tokenizer
    chat: bool | Chat | None = None
    suffix: str = ""

    @cached_property
    def template(self) -> Chat | None:
        """How the template is used; None where prompts are plain text.

        Raises:
            ValueError: a chat is wanted, and the tokenizer has no template.
        """
        wanted = self.tokenizer.has_template if self.chat is None else bool(self.chat)
        if wanted and not self.tokenizer.has_template:
            raise ValueError(
                "chat: the tokenizer has no chat template: take a FolderTokenizer that has one, or leave chat out"
            )
        if not wanted:
            return None
        return self.chat if isinstance(self.chat, Chat) else Chat()

    def posed(self, prompt: PromptText) -> PromptText:
        """The prompt as the model sees it: messages where there is a template, and the suffix at the end."""
        if self.suffix:
            prompt = with_last(prompt, lambda text: text + self.suffix)
        if self.template is None:
            return prompt
        messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        has_system = messages[0].role in ("system", "developer")
        if self.template.system is None or has_system:
            return messages
        return (Message("system", self.template.system), *messages)

    @cached_property
    def ids(self) -> Callable[[PromptText], list[int]]:
        """prompt → its ids, up to where the reply begins. Tasks ask for the same prompts again: the ids are kept.

        Raises, of the function:
            ValueError: the tokenizer cannot encode it, it has messages and there is no template, or no id at all.
        """
        return lru_cache(65536)(self._encoded)

    def _encoded(self, prompt: PromptText) -> list[int]:
        posed = self.posed(prompt)
        ids = self.tokenizer.encode_prompt(posed if isinstance(posed, str) else [asdict(each) for each in posed])
        if not ids:
            raise ValueError("prompt: it is empty; a reply needs at least one token before it")
        return ids

    def turn(self, text: str, chat: tuple[Message, ...], end: int | None) -> list[int]:
        """The ids between two replies of a chat, when the user says `text` to the first; see `Tokenizer.encode_turn`.

        Equal turns are encoded once: what the assistant said does not matter.

        Args: chat: the messages that led to the first reply, posed; end: the token that ended it; None: it was cut.
        Raises:
            ValueError: as `Tokenizer.encode_turn`.
        """
        without_replies = (Message(each.role, "") if each.role == "assistant" else each for each in chat)
        return self._turns(text, tuple(without_replies), end)

    @cached_property
    def _turns(self) -> Callable[[str, tuple[Message, ...], int | None], list[int]]:
        encode = self.tokenizer.encode_turn
        return lru_cache(65536)(lambda text, chat, end: encode(text, [asdict(each) for each in chat], end))


def with_last(prompt: PromptText, change: Callable[[str], str]) -> PromptText:
    """A prompt whose text is changed; of a chat the last message's."""
    if isinstance(prompt, str):
        return change(prompt)
    *before, last = prompt
    return (*before, Message(last.role, change(last.content)))


def texts_of(prompt: PromptText) -> list[str]:
    """The texts of a prompt, one for each message."""
    return [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
