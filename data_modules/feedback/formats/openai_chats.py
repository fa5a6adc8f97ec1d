"""OpenAI's fine-tuning formats (messages; preferences), and ShareGPT's conversations.

https://platform.openai.com/docs/guides/supervised-fine-tuning, https://platform.openai.com/docs/guides/direct-preference-optimization
"""

from __future__ import annotations

from typing import Any

from data_modules.feedback.formats.account import NO_ANSWER, Account, LeftOut
from data_modules.feedback.formats.chat import answers, conversation, exchange
from data_modules.feedback.formats.value import Value
from data_modules.judgements.schema import Judgement, Message


def fits(record: dict[str, Any]) -> bool:
    """Whether a record has this format."""
    return any(isinstance(record.get(name), list) for name in ("messages", "conversations", "preferred_output"))


def judgements(record: Value, account: Account) -> list[Judgement]:
    """The assistant's final message becomes the expected response, or the preferred output is ranked first."""
    name = record["id"].name()
    if "preferred_output" in record or "non_preferred_output" in record:
        before = conversation(record["input"]["messages"], account)
        sides = [before + _last(record[side], account) for side in ("preferred_output", "non_preferred_output")]
        prompt, responses = answers(*sides)
        return [Judgement(prompt, responses, ranking="A > B", id=name)]
    messages = record["conversations"] if "conversations" in record else record["messages"]
    turns = conversation(messages, account)
    if "system" in record and turns and turns[0].role != "system":
        turns = (Message("system", record["system"].text()), *turns)
    if messages.json and isinstance(messages.json[-1], dict) and messages.json[-1].get("weight") == 0:
        raise LeftOut("records whose answer has weight 0")
    prompt, expected = exchange(turns)
    return [Judgement(prompt, expected=expected, id=name)]


def _last(output: Value, account: Account) -> tuple[Message, ...]:
    """The last message of an output.  Raises LeftOut: no message has text."""
    turns = conversation(output, account)
    if not turns:
        raise LeftOut(NO_ANSWER)
    if len(turns) > 1:
        account.note("messages of an output before its last one left out", len(turns) - 1)
    return turns[-1:]
