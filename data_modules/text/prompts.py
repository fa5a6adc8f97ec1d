"""Prompt format: turn a prompt into token ids, as plain text or by a chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache

from data_modules.judgements.schema import Message, PromptText
from data_modules.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chat:
    """Use the tokenizer's chat template for prompts.

    Args:
        system: system message for every chat that has none.
    """

    system: str | None = None


@dataclass(frozen=True)
class PromptFormat:
    """Turn prompts, which are texts or messages of a chat, into token ids. All prompts are encoded here.

    Args:
        chat: True or `Chat()` = a text becomes the user's message in the chat template, as instruct models expect.
            False = a text stays plain text. None = True if the tokenizer has a template.
        suffix: text added to the end of every prompt; in a chat to the end of the last message.
    """

    tokenizer: Tokenizer
    chat: bool | Chat | None = None
    suffix: str = ""

    @cached_property
    def template(self) -> Chat | None:
        """The settings for the chat template; None if prompts are plain text.

        Raises:
            ValueError: `chat` requires a chat template, and the tokenizer has none.
        """
        use = self.tokenizer.has_template if self.chat is None else bool(self.chat)
        if use and not self.tokenizer.has_template:
            raise ValueError(
                "chat: the tokenizer has no chat template: use a FolderTokenizer that has one, or leave chat out"
            )
        if not use:
            return None
        return self.chat if isinstance(self.chat, Chat) else Chat()

    def posed(self, prompt: PromptText) -> PromptText:
        """The prompt with the suffix, as messages if a template is used."""
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
        """Function from a prompt to its ids, up to the start of the reply; results are cached.

        Raises, when called:
            ValueError: the tokenizer cannot encode the prompt; the prompt has messages and there is no template; or the
                prompt has no ids at all.
        """
        return lru_cache(65536)(self._encoded)

    def _encoded(self, prompt: PromptText) -> list[int]:
        posed = self.posed(prompt)
        ids = self.tokenizer.encode_prompt(posed if isinstance(posed, str) else [asdict(message) for message in posed])
        if not ids:
            raise ValueError("prompt: it is empty; it must have at least one token")
        return ids

    def turn(self, text: str, chat: tuple[Message, ...], end: int | None) -> list[int]:
        """The ids between two replies of a chat in which the user's message is `text`; see `Tokenizer.encode_turn`.

        The ids are cached, because they do not depend on the assistant's replies.

        Args: chat: the messages before the first reply, as returned by `posed`; end: the stop token of that reply, None
            if the reply was cut off.
        Raises:
            ValueError: as `Tokenizer.encode_turn`.
        """
        without_replies = (replace(message, content="") if message.role == "assistant" else message for message in chat)
        return self._turns(text, tuple(without_replies), end)

    @cached_property
    def _turns(self) -> Callable[[str, tuple[Message, ...], int | None], list[int]]:
        encode = self.tokenizer.encode_turn
        return lru_cache(65536)(lambda text, chat, end: encode(text, [asdict(message) for message in chat], end))


def with_last(prompt: PromptText, change: Callable[[str], str]) -> PromptText:
    """Apply `change` to the text of a prompt; in a chat to the text of the last message."""
    if isinstance(prompt, str):
        return change(prompt)
    *before, last = prompt
    return (*before, Message(last.role, change(last.content)))


def texts_of(prompt: PromptText) -> list[str]:
    """The texts of a prompt, one per message."""
    return [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
