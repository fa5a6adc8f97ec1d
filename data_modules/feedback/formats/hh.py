r"""HH-RLHF: pairs of transcripts "\n\nHuman: … \n\nAssistant: …" (Bai et al. 2022, https://arxiv.org/abs/2204.05862)."""

from __future__ import annotations

import re
from typing import Any

from data_modules.feedback.formats.account import NO_ANSWER, Account, LeftOut
from data_modules.feedback.formats.chat import answers
from data_modules.feedback.formats.value import Value
from data_modules.judgements.schema import Judgement, Message

_ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def fits(record: dict[str, Any]) -> bool:
    """Whether a record has this format."""
    return all(isinstance(text := record.get(side), str) and _TURN.match(text) for side in ("chosen", "rejected"))


def judgements(record: Value, account: Account) -> list[Judgement]:
    """One judgement with two answers; the chosen answer is ranked first."""
    prompt, responses = answers(*(_turns(record[side], account) for side in ("chosen", "rejected")))
    return [Judgement(prompt, responses, ranking="A > B", source="person", id=record["id"].name())]


def _turns(transcript: Value, account: Account) -> tuple[Message, ...]:
    start, *parts = _TURN.split(transcript.text())
    if start.strip() or not parts:
        raise ValueError(f"{transcript.path}: not a transcript; it must begin with Human: or Assistant:")
    turns = [(_ROLES[speaker], text.strip()) for speaker, text in zip(parts[::2], parts[1::2], strict=True)]
    if not turns[-1][1]:
        raise LeftOut(NO_ANSWER)
    if blank := sum(not text for _, text in turns):
        account.note("turns without text left out", blank)
    return tuple(Message(role, text) for role, text in turns if text)
