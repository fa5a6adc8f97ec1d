"""From a chat to the ids of a prompt, by the model's own template. Nowhere else does a chat become ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from data_modules.text.control_tokens import ControlTokens

Messages = Sequence[Mapping[str, str]]  # of a chat: each with `role` and `content`
ASSISTANT = "assistant"  # the role of the model itself, whose words `ControlTokens.words` are


def chat_ids(messages: Messages, render: Callable[[Messages], str], control: ControlTokens) -> list[int]:
    """The ids of a chat as transformers' `apply_chat_template` has them, save that what a content spells stays text.

    The template is rendered with contents in which no control token can stand: so all that are found are its own.

    Args: render: the template: raises ValueError where it refuses the chat.
    Raises:
        ValueError: the template refuses the chat; or it reads or rewrites a control token that a content spells, so
            that it cannot be told whose the tokens of its text are.
    """
    text = render(messages)
    shielded = render(_with_contents(messages, control.shielded))
    if control.unshielded(shielded) != text:  # the template looks for a tag, or rewrites letters
        only_spelled = render(_with_contents(messages, control.shielded_where_spelled))
        if control.unshielded(only_spelled) != text or not _same_tokens(messages, only_spelled, shielded, control):
            raise ValueError(
                "prompt: the chat template rewrites a message that spells a control token, so that its own tokens "
                f"cannot be told from those of the message: take {_spelled(messages, control)} out of it"
            )
        shielded = only_spelled
    return control.encode_shielded(shielded).ids


def _with_contents(messages: Messages, change: Callable[[str, bool], str]) -> Messages:
    return [{**message, "content": change(message["content"], message["role"] == ASSISTANT)} for message in messages]


def _same_tokens(messages: Messages, one: str, other: str, control: ControlTokens) -> bool:
    """Whether two renderings have the same control tokens. The model's words may differ where it has said some."""
    has_words = any(
        word in message["content"] for message in messages if message["role"] == ASSISTANT for word in control.words
    )
    apart = control.words if has_words else set()
    tokens = [[token for token in control.written(text) if token not in apart] for text in (one, other)]
    return tokens[0] == tokens[1]


def _spelled(messages: Messages, control: ControlTokens) -> str:
    """The control tokens in the contents, for a message to a person."""
    spelled = {text: None for message in messages for text in control.spelled(message["content"])}
    return ", ".join(map(repr, spelled)) or "its tags"
