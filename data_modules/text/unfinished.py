"""Change the reward of replies that were cut off at `max_new`, or learn nothing from such replies."""

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
    """Add `amount` to the reward at the end of each cut reply, or replace the reward by `amount` if `instead`.

    Args: of: (B,) the episode of each row, −1 = none.
    """
    rewards = required(
        batch.rewards, "unfinished: nothing scores the replies; use keep, reject or drop for cut replies"
    )
    from_episode = of >= 0
    dialogues = [dialogue for episode in episodes for dialogue in conversation.rows(episode)]
    cut = cut_short(dialogues, conversation.stops, rewards[from_episode])
    steps, ends = (torch.zeros_like(batch.mask).index_put((from_episode,), part) for part in cut)
    base = torch.where(steps, 0.0, rewards) if instead else rewards
    return replace(batch, rewards=base + amount * ends)


def drop_cut_episodes(batch: Batch, episodes: Sequence[Episode], of: Tensor) -> Batch:
    """Mark all steps as not valid in the rows of episodes that have a cut reply.

    Args: of: (B,) the episode of each row, −1 = none.
    """
    assert batch.expert_mask is not None
    from_episode, stays = of >= 0, torch.ones(len(batch), 1, dtype=torch.bool)
    stays[from_episode, 0] = torch.tensor([episode.finished for episode in episodes])[of[from_episode]]
    return replace(batch, valid=batch.valid & stays, mask=batch.mask & stays, expert_mask=batch.expert_mask & stays)


def cut_short(dialogues: Sequence[Sequence[Segment]], stops: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of all steps in cut replies, and of the last step of each cut reply, both (B, T) bool.

    Args: stops: the ids that end a reply; like: a tensor with the shape of the masks, (B, T).
    """
    steps, ends = (torch.zeros(like.shape, dtype=torch.bool) for _ in range(2))
    for row, dialogue in enumerate(dialogues):
        begin = read = -1  # the action at t is token t + 1
        for segment, after in zip(dialogue, [*dialogue[1:], None], strict=True):
            read += len(segment.ids)
            if segment.by == READ:
                begin = read
            elif (after is None or after.by == READ) and segment.ids[-1] not in stops:
                steps[row, begin:read] = ends[row, read - 1] = True
    return steps, ends
