"""Feedback lines of dialogues: one for each reply, with all messages that led to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from data_modules.judgements.schema import plain
from data_modules.text.conversation import Conversation
from data_modules.text.episode import Episode


def replies_by_turn(episode: Episode, name: str, rewards: Tensor | None, conversation: Conversation) -> list[Any]:
    """One line of a feedback file for each reply of a dialogue, so that feedback may be about any of them.

    `prompt` is the messages that the policy saw before the reply, `score` what that reply earned, `meta.episode` the
    dialogue's name, and `meta.turn` the number of the reply in it, from 1. A message cannot be empty: there is no line
    of an empty reply, nor of what was said after it, as long as the policy saw it.

    Args: rewards: (T,) of the row that `conversation.dialogue` makes; None where nobody pays.
    """
    posing = replace(conversation, suffix="")  # a file has no suffix
    earned = _earned(episode, rewards, conversation)
    lines = []
    for number, turn in enumerate(episode.turns, 1):
        prompt = plain(posing.messages(*posing.heard(episode, number - 1)))
        if not turn.text.strip() or not all(message["content"].strip() for message in prompt):
            continue
        line = {"id": f"{name}/{number}", "prompt": prompt, "responses": [turn.text]}
        line |= {} if earned is None else {"score": [earned[number - 1]], "source": "rule"}
        meta = {"finished": [turn.finished], "tokens": [turn.tokens], "tokenizer": conversation.tokenizer.digest}
        facts = episode.prompt.case.plain_facts
        meta |= {"episode": name, "turn": number, **({"facts": facts} if facts else {})}
        lines.append(line | {"meta": meta})
    return lines


def _earned(episode: Episode, rewards: Tensor | None, conversation: Conversation) -> Sequence[float] | None:
    """What each reply earned: the sum over its tokens."""
    if rewards is None:
        return None
    earned, read = [], len(episode.prompt.ids)
    for place, turn in enumerate(episode.turns):
        if place:
            read += len(conversation.between(episode.prompt.case.prompt, episode.turns[:place]))
        steps = slice(read - 1, read - 1 + len(turn.tokens))  # the action at t is token t + 1
        earned.append(float(rewards[steps].sum()))
        read += len(turn.tokens)
    return earned
