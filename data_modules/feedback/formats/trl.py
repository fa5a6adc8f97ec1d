"""TRL's formats: preferences (with explicit or implicit prompt), messages, prompt with completion, and KTO labels.

https://huggingface.co/docs/trl/dataset_formats
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from data_modules.feedback.formats import openai_chats
from data_modules.feedback.formats.account import NO_ANSWER, NO_PROMPT, Account, LeftOut
from data_modules.feedback.formats.chat import answers, conversation, exchange
from data_modules.feedback.formats.value import Value
from data_modules.judgements.schema import Judgement, Message, PromptText

_SCORES = (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"), ("chosen_score", "rejected_score"))


def fits(record: dict[str, Any]) -> bool:
    """Whether a record has this format."""
    return {"chosen", "rejected"} <= record.keys() or {"prompt", "completion"} <= record.keys()


def judgements(record: Value, account: Account) -> list[Judgement]:
    """`chosen` is ranked above `rejected`; a completion is scored 1 or 0 by its label, else expected."""
    if "messages" in record and "chosen" not in record:
        return openai_chats.judgements(record, account)
    name = record["id"].name() or record["prompt_id"].name()
    before = _turns(record["prompt"], "user", account)
    if "chosen" in record or "rejected" in record:
        chosen, rejected = (record[side] for side in ("chosen", "rejected"))
        prompt: PromptText
        responses: tuple[str, ...]
        if not before and isinstance(chosen.json, str):
            prompt, responses = _shared(chosen.text(), rejected.text())
        else:
            replies = [_turns(side, "assistant", account) for side in (chosen, rejected)]
            if any(reply and reply[0].role != "assistant" and not set(before) <= set(reply) for reply in replies):
                account.note("prompts left out because the conversations have a different one")
            prompt, responses = answers(*(_after(before, reply) for reply in replies))
        return [Judgement(prompt, responses, ranking="A > B", score=_scores(record), id=name)]
    prompt, reply = exchange(_after(before, _turns(record["completion"], "assistant", account)))
    if "label" in record:
        return [Judgement(prompt, (reply,), score=(float(record["label"].flag()),), id=name)]
    return [Judgement(prompt, expected=reply, id=name)]


def _turns(value: Value, role: str, account: Account) -> tuple[Message, ...]:
    """The messages of a conversation; a text becomes one message with the given role."""
    if isinstance(value.json, list):
        return conversation(value, account)
    text = value.words()
    return (Message(role, text),) if text else ()


def _after(before: tuple[Message, ...], reply: tuple[Message, ...]) -> tuple[Message, ...]:
    """The full conversation. A reply that does not begin with the assistant already includes the prompt."""
    if not reply:
        raise LeftOut(NO_ANSWER)
    return reply if reply[0].role != "assistant" else before + reply


def _shared(chosen: str, rejected: str) -> tuple[str, tuple[str, str]]:
    """Split two texts into their common beginning, up to a space, as the prompt, and the rest as the two responses."""
    if not chosen.strip() or not rejected.strip():
        raise LeftOut(NO_ANSWER)
    if chosen == rejected:
        raise LeftOut("records with two equal answers")
    size = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    while size and not chosen[size - 1].isspace():
        size -= 1
    prompt, responses = chosen[:size].strip(), (chosen[size:].strip(), rejected[size:].strip())
    if not prompt:
        raise LeftOut(NO_PROMPT)
    if not all(responses):
        raise LeftOut(NO_ANSWER)
    return prompt, responses


def _scores(record: Value) -> tuple[float, ...] | None:
    for names in _SCORES:
        if all(name in record for name in names):
            return tuple(record[name].number() for name in names)
    return None
