"""From a chat to the ids of a prompt, by the model's own template. Nowhere else does a chat become ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice, takewhile

from data_modules.text.control_tokens import ControlTokens

Messages = Sequence[Mapping[str, str]]  # of a chat: each with `role` and `content`
ASSISTANT = "assistant"  # the role of the model itself, whose words `ControlTokens.words` are
MARKS = range(0xE000, 0xF900)  # of private use: characters that stand for a reply


def chat_ids(messages: Messages, render: Callable[[Messages], str], control: ControlTokens) -> list[int]:
    """The ids of a chat as transformers' `apply_chat_template` has them, save that what a content spells stays text.

    The template is rendered with contents in which no control token can stand: so all that are found are its own.

    Args: render: the template: raises ValueError where it refuses the chat.
    Raises:
        ValueError: the template refuses the chat; or it reads or rewrites a control token that a content spells, so
            that it cannot be told whose the tokens of its text are.
    """
    return control.encode_shielded(_rendered(messages, render, control)).ids


def turn_ids(
    text: str, chat: Messages, render: Callable[[Messages], str], control: ControlTokens, end: int | None
) -> list[int]:
    """The ids between a sampled reply and the next one: the end of the reply's turn, the user's turn, the next opening.

    No reply is rendered: a mark stands in its place, and what the template writes after the last mark is taken. So
    neither what the model said, nor what the template would make of it, changes these ids.

    Args:
        text: what the user says next.
        chat: the messages that led to the reply. What the assistant says in them does not matter.
        render: as in `chat_ids`.
        end: the last token of the reply, if that ended it; None: the reply was cut. It is not written twice: where the
            template ends the turn with it, what comes after it is taken. Another end of the template's own is added.
    Raises:
        ValueError: as `chat_ids`; or the reply's place in the rendered chat is not to be found.
    """
    mark, earlier = _marks([*(message["content"] for message in chat), text], control)
    before = [{**message, "content": earlier} if message["role"] == ASSISTANT else message for message in chat]
    messages = [*before, {"role": ASSISTANT, "content": mark}, {"role": "user", "content": text}]
    encoded = control.encode_shielded(_rendered(messages, render, control))
    first = encoded.text.find(mark) + len(mark)  # character behind the reply
    places = [i for i, (_, stop) in enumerate(encoded.offsets) if stop > first]
    if encoded.text.count(mark) != 1 or not places or encoded.offsets[places[0]][0] < first:
        raise ValueError(
            "chat: where a reply ends cannot be found in what the chat template writes, because it leaves out, repeats "
            "or joins replies: it is for single turns"
        )
    ids, starts = encoded.ids[places[0] :], [encoded.offsets[place][0] for place in places]
    blank = takewhile(lambda i: not encoded.text[first : starts[i]].strip(), range(len(ids)))  # only blanks before it
    ended = next((i + 1 for i in blank if ids[i] == end), 0)
    return ids[ended:]


def _rendered(messages: Messages, render: Callable[[Messages], str], control: ControlTokens) -> str:
    """The chat as text for `encode_shielded`, in which all control tokens are the template's own.

    Raises ValueError: as `chat_ids`.
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
    return shielded


def _marks(contents: Sequence[str], control: ControlTokens) -> list[str]:
    """Two characters of private use that no content holds, and that need no shield."""
    taken = set().union(*contents)
    free = (mark for mark in map(chr, MARKS) if mark not in taken and control.shielded(mark) == mark)
    return list(islice(free, 2))


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
