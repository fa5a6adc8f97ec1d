"""Lines of a feedback file from dialogues: one line for each reply, with all messages before the reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from data_modules.judgements.schema import plain
from data_modules.text.conversation import Conversation
from data_modules.text.episode import Episode


def replies_by_turn(episode: Episode, name: str, rewards: Tensor | None, conversation: Conversation) -> list[Any]:
    """Make one line of a feedback file for each reply of a dialogue, so that people can judge each reply.

    `prompt` has the messages that the policy saw before the reply, `score` is the reward of that reply, `meta.episode`
    is the name of the dialogue, and `meta.turn` is the number of the reply, counted from 1. A message cannot be empty,
    so an empty reply gets no line, and neither do later replies whose prompt would include the empty reply.

    Args: name: the name of the dialogue; rewards: (T,) for the row from `conversation.dialogue`, None if nothing scores
        replies.
    """
    posing = replace(conversation, suffix="")  # prompts in files have no suffix
    earned = _earned(episode, rewards, conversation)
    lines = []
    for number, turn in enumerate(episode.turns, 1):
        prompt = plain(posing.messages(*posing.visible(episode, number - 1)))
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
    """The reward of each reply, summed over the tokens of the reply."""
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
