"""Convert chat messages from other programs: map roles, join text parts, and count parts that are left out."""

from __future__ import annotations

from data_modules.feedback.formats.account import NO_ANSWER, NO_PROMPT, Account, LeftOut
from data_modules.feedback.formats.value import Value
from data_modules.judgements.fields import MEANT, cut
from data_modules.judgements.schema import ROLES, Message, PromptText

PART = "records whose two conversations differ before the last answer"
_TEXT = ("text", "input_text", "output_text")


def conversation(messages: Value, account: Account) -> tuple[Message, ...]:
    """The messages that have text, from keys `role` and `content` (OpenAI) or `from` and `value` (ShareGPT)."""
    turns = [_turn(message, account) for message in messages.elements()]
    return tuple(turn for turn in turns if turn is not None)


def _turn(message: Value, account: Account) -> Message | None:
    role = message["from"] if "from" in message else message["role"]
    name = MEANT.get(role.text(), role.text())
    if name not in ROLES:
        raise ValueError(f"{role.path}: got {cut(repr(role.text()))}, must be one of {', '.join([*ROLES, *MEANT])}")
    text = joined(message["value"] if "value" in message else message["content"], account)
    if text is None:
        account.note("messages without text left out")
    return None if text is None else Message(name, text)


def joined(content: Value, account: Account) -> str | None:
    """The text of a message, with text parts joined by line breaks. Other parts are counted as left out."""
    if not isinstance(content.json, list):
        return content.words()
    texts: list[str | None] = []
    for part in content.elements():
        if isinstance(part.json, str):
            texts.append(part.words())
        elif (kind := part["type"].text()) in _TEXT:
            texts.append(part["text"].words())
        else:
            account.note(f"{cut(kind.removeprefix('input_').removesuffix('_url'))} parts left out")
            part.raw()
    return "\n".join(text for text in texts if text) or None


def posed(turns: tuple[Message, ...]) -> PromptText:
    """Make a prompt of messages; a single user message becomes a text."""
    if not turns:
        raise LeftOut(NO_PROMPT)
    return turns[0].content if len(turns) == 1 and turns[0].role == "user" else turns


def exchange(turns: tuple[Message, ...]) -> tuple[PromptText, str]:
    """Split a conversation into the prompt and the assistant's final answer."""
    if not turns or turns[-1].role != "assistant":
        raise LeftOut(NO_ANSWER)
    return posed(turns[:-1]), turns[-1].content


def answers(*sides: tuple[Message, ...]) -> tuple[PromptText, tuple[str, ...]]:
    """The common prompt of several conversations, and the final answer of each conversation.

    Raises:
        LeftOut: the conversations differ before the final answer.
    """
    exchanges = [exchange(side) for side in sides]
    if any(prompt != exchanges[0][0] for prompt, _ in exchanges):
        raise LeftOut(PART)
    return exchanges[0][0], tuple(answer for _, answer in exchanges)
