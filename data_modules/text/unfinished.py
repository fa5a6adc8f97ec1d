"""Replies that were cut before they ended: which steps they have, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from data_modules.text.conversation import Conversation
from data_modules.text.episode import Episode
from data_modules.text.rows import READ, Segment
from lightning_nlf.batch import Batch, required

Unfinished = Literal["keep", "reject", "replace", "penalty", "drop"]


def repay_cut_replies(
    batch: Batch, conversation: Conversation, episodes: Sequence[Episode], of: Tensor, amount: float, instead: bool
) -> Batch:
    """With `amount` at the end of each cut reply, on top of what it earns, or `instead` of it.

    Args: of: (B,) the episode of each row, −1 where it is of none.
    """
    rewards = required(
        batch.rewards, "unfinished: nobody pays for the replies; keep, reject or drop those that are cut"
    )
    played = of >= 0
    dialogues = [dialogue for episode in episodes for dialogue in conversation.rows(episode)]
    cut = cut_short(dialogues, conversation.stops, rewards[played])
    steps, ends = (torch.zeros_like(batch.mask).index_put((played,), part) for part in cut)
    kept = torch.where(steps, 0.0, rewards) if instead else rewards
    return replace(batch, rewards=kept + amount * ends)


def drop_cut_episodes(batch: Batch, episodes: Sequence[Episode], of: Tensor) -> Batch:
    """With no step to learn from in the rows of episodes that have a cut reply.

    Args: of: (B,) the episode of each row, −1 where it is of none.
    """
    assert batch.expert_mask is not None
    played, stays = of >= 0, torch.ones(len(batch), 1, dtype=torch.bool)
    stays[played, 0] = torch.tensor([episode.finished for episode in episodes])[of[played]]
    return replace(batch, valid=batch.valid & stays, mask=batch.mask & stays, expert_mask=batch.expert_mask & stays)


def cut_short(dialogues: Sequence[Sequence[Segment]], stops: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Which steps of the rows belong to a reply that did not end by itself, and which are the last of one; (B, T) bool.

    Args: stops: the tokens that end a reply; like: (B, T), for its shape.
    """
    steps, ends = (torch.zeros(like.shape, dtype=torch.bool) for _ in range(2))
    for row, dialogue in enumerate(dialogues):
        begin = read = -1  # the action at t is token t + 1
        for segment, behind in zip(dialogue, [*dialogue[1:], None], strict=True):
            read += len(segment.ids)
            if segment.by == READ:
                begin = read
            elif (behind is None or behind.by == READ) and segment.ids[-1] not in stops:
                steps[row, begin:read] = ends[row, read - 1] = True
    return steps, ends
