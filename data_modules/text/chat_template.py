"""Token ids of a chat, from the model's own chat template. All code that turns a chat into ids calls this module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice, takewhile

from data_modules.text.control_tokens import ControlTokens

Messages = Sequence[Mapping[str, str]]  # a chat; each message has `role` and `content`
ASSISTANT = "assistant"  # the role of the model, whose replies may contain `ControlTokens.words`
MARKS = range(0xE000, 0xF900)  # private-use characters, which stand in for a reply


def chat_ids(messages: Messages, render: Callable[[Messages], str], control: ControlTokens) -> list[int]:
    """The ids of a chat, as in transformers' `apply_chat_template`, except that control tokens in a message stay text.

    The template is rendered with message contents that cannot spell a control token, so every control token in the
    result was written by the template.

    Args: render: function that renders the template, and raises ValueError if the template refuses the chat.
    Raises:
        ValueError: the template refuses the chat; or the template reads or rewrites a control token that a message
            spells, so that the template's control tokens cannot be told from the message's text.
    """
    return control.encode_shielded(_rendered(messages, render, control)).ids


def turn_ids(
    text: str, chat: Messages, render: Callable[[Messages], str], control: ControlTokens, end: int | None
) -> list[int]:
    """The ids between a sampled reply and the next reply: the end of the reply, the user's turn, and the next opening.

    Replies are not rendered. A mark takes the place of each reply, and the ids are those that the template writes after
    the last mark. The ids therefore do not depend on the model's reply, or on how the template would rewrite the reply.

    Args:
        text: the user's next message.
        chat: the messages before the reply. The contents of assistant messages have no effect.
        render: as in `chat_ids`.
        end: the stop token that ended the reply; None if the reply was cut off. If the template ends a turn with the
            same token, the token is not repeated. If the template uses a different end token, that token is added.
    Raises:
        ValueError: as `chat_ids`; or the end of the reply cannot be located in the rendered chat.
    """
    mark, earlier = _marks([*(message["content"] for message in chat), text], control)
    before = [{**message, "content": earlier} if message["role"] == ASSISTANT else message for message in chat]
    messages = [*before, {"role": ASSISTANT, "content": mark}, {"role": "user", "content": text}]
    encoded = control.encode_shielded(_rendered(messages, render, control))
    first = encoded.text.find(mark) + len(mark)  # the first character after the reply
    places = [i for i, (_, stop) in enumerate(encoded.offsets) if stop > first]
    if encoded.text.count(mark) != 1 or not places or encoded.offsets[places[0]][0] < first:
        raise ValueError(
            "chat: the end of a reply cannot be located in the output of the chat template, because the template "
            "leaves out, repeats or joins replies: use it for single turns only"
        )
    ids, starts = encoded.ids[places[0] :], [encoded.offsets[place][0] for place in places]
    blank = takewhile(lambda i: not encoded.text[first : starts[i]].strip(), range(len(ids)))  # only white space so far
    ended = next((i + 1 for i in blank if ids[i] == end), 0)
    return ids[ended:]


def _rendered(messages: Messages, render: Callable[[Messages], str], control: ControlTokens) -> str:
    """Render the chat for `encode_shielded`. Every unshielded control token in the text is from the template.

    Raises ValueError: as `chat_ids`.
    """
    text = render(messages)
    shielded = render(_with_contents(messages, control.shielded))
    if control.unshielded(shielded) != text:  # the template searches for a tag, or changes letters
        only_spelled = render(_with_contents(messages, control.shielded_where_spelled))
        if control.unshielded(only_spelled) != text or not _same_tokens(messages, only_spelled, shielded, control):
            raise ValueError(
                "prompt: the chat template rewrites a message that spells a control token, and its own control tokens "
                f"cannot be told from the message's text: remove {_spelled(messages, control)} from the message"
            )
        shielded = only_spelled
    return shielded


def _marks(contents: Sequence[str], control: ControlTokens) -> list[str]:
    """Two private-use characters that occur in none of the `contents` and need no shield."""
    used = set().union(*contents)
    free = (mark for mark in map(chr, MARKS) if mark not in used and control.shielded(mark) == mark)
    return list(islice(free, 2))


def _with_contents(messages: Messages, change: Callable[[str, bool], str]) -> Messages:
    return [{**message, "content": change(message["content"], message["role"] == ASSISTANT)} for message in messages]


def _same_tokens(messages: Messages, first: str, second: str, control: ControlTokens) -> bool:
    """Whether two renderings have the same control tokens, apart from `words` in the assistant's messages."""
    has_words = any(
        word in message["content"] for message in messages if message["role"] == ASSISTANT for word in control.words
    )
    apart = control.words if has_words else set()
    tokens = [[token for token in control.tokens_in(text) if token not in apart] for text in (first, second)]
    return tokens[0] == tokens[1]


def _spelled(messages: Messages, control: ControlTokens) -> str:
    """The control tokens that the messages spell, as text for an error message."""
    spelled = {text: None for message in messages for text in control.spelled(message["content"])}
    return ", ".join(map(repr, spelled)) or "its tags"
