"""Chatbot Arena of LMSYS (Zheng et al. 2023, https://arxiv.org/abs/2306.05685): original and Kaggle data sets."""

from __future__ import annotations

import json
from typing import Any

from data_modules.feedback.formats.account import Account, LeftOut
from data_modules.feedback.formats.chat import answers, conversation
from data_modules.feedback.formats.value import Value
from data_modules.judgements.fields import cut
from data_modules.judgements.schema import Judgement, Message

_RANKINGS = {"model_a": "A > B", "model_b": "B > A", "tie": "A = B", "tie (bothbad)": "A = B", "both_bad": "A = B"}
_FLAGS = ("winner_model_a", "winner_model_b", "winner_tie")


def fits(record: dict[str, Any]) -> bool:
    """Whether a record has this format."""
    return {"conversation_a", "conversation_b"} <= record.keys() or {"response_a", *_FLAGS[:2]} <= record.keys()


def judgements(record: Value, account: Account) -> list[Judgement]:
    """One judgement with two answers, ranked by the vote. `meta` holds the models and the vote."""
    winner = _winner(record)
    if winner in ("tie (bothbad)", "both_bad"):
        account.note("votes for 'both are bad' written as ties (meta.winner holds the original vote)")
    if "conversation_a" in record:
        rounds = record["turn"].whole() if record["turn"] else None
        sides = [_cut(conversation(record[f"conversation_{side}"], account), rounds) for side in "ab"]
    else:
        sides = [_kaggle(record["prompt"], record[f"response_{side}"]) for side in "ab"]
    prompt, responses = answers(*sides)
    meta = {"models": [record[f"model_{side}"].name() for side in "ab"], "winner": winner}
    name = record["question_id"].name() or record["id"].name()
    source = record["judge"].name() or "person"
    return [Judgement(prompt, responses, ranking=_RANKINGS[winner], source=source, meta=meta, id=name)]


def _winner(record: Value) -> str:
    if "winner" not in record and any(flag in record for flag in _FLAGS):
        true = [flag.removeprefix("winner_") for flag in _FLAGS if record[flag] and record[flag].flag()]
        if len(true) != 1:
            raise ValueError(f"{', '.join(_FLAGS)}: exactly one of them must be 1, but {len(true)} are")
        return true[0]
    winner = record["winner"].text()
    if winner not in _RANKINGS:
        raise ValueError(f"winner: got {cut(repr(winner))}, must be one of {', '.join(_RANKINGS)}")
    return winner


def _cut(turns: tuple[Message, ...], rounds: int | None) -> tuple[Message, ...]:
    """Cut a conversation to its first `rounds` rounds, if the vote covers only these rounds."""
    users = [i for i, turn in enumerate(turns) if turn.role == "user"]
    return turns if rounds is None or rounds >= len(users) or rounds < 1 else turns[: users[rounds]]


def _kaggle(prompts: Value, responses: Value) -> tuple[Message, ...]:
    """Messages from two JSON lists, one of prompts and one of responses."""
    texts = []
    for value in (prompts, responses):
        try:
            items = json.loads(value.text())
        except (json.JSONDecodeError, RecursionError):
            raise value.wrong("a JSON list in a text") from None
        if not isinstance(items, list) or any(not isinstance(item, str | None) for item in items):
            raise value.wrong("a JSON list of texts in a text")
        texts.append(items)
    if len(texts[0]) != len(texts[1]):
        raise LeftOut("records with different numbers of prompts and answers")
    turns = [turn for prompt, reply in zip(*texts, strict=True) for turn in (("user", prompt), ("assistant", reply))]
    return tuple(Message(role, text) for role, text in turns if text and text.strip())
