"""Rows of a batch from token sequences. Tokens are used as sampled, and text is never tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_nlf.batch import Batch

READ, LEARNER, EXPERT = range(3)  # author of tokens: prompt or environment (no decision), learner, expert


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of a dialogue from one speaker.

    Args:
        ids: the tokens; a reply includes its stop token.
        by: the author of the tokens: READ (prompt or environment), LEARNER or EXPERT.
        log_probs: log-probability of each token under the policy that sampled the tokens, as many as ids.
        reward: reward given at the last token.
    """

    ids: Sequence[int] | np.ndarray
    by: int = READ
    log_probs: Sequence[float] | None = None
    reward: float | None = None


def as_rows(
    prompts: Sequence[Sequence[int] | np.ndarray],
    replies: Sequence[Sequence[int] | np.ndarray],
    by: int = LEARNER,
) -> Batch:
    """Make one row of each prompt and its reply.

    Args: by: the author of the replies, LEARNER or EXPERT.
    Returns, raises: as `as_batch`.
    """
    return as_batch([(Segment(prompt), Segment(reply, by)) for prompt, reply in zip(prompts, replies, strict=True)])


def as_batch(dialogues: Sequence[Sequence[Segment]]) -> Batch:
    """Make one right-padded row of each dialogue. The action at t is token t + 1.

    A row ends with its last reply, because tokens after the last reply lead to no action. Padding is 0, and no model
    reads it. `terminated` is True for every row.

    Returns: the batch, with `log_probs` and `rewards` if any reply has them. A missing log-probability of an expert is
        +∞ (certain), a missing reward is 0. `group`, `rank` and `score` are left to the caller.
    Raises:
        ValueError: there is no dialogue; a dialogue does not begin with a prompt, or has no reply; `log_probs` and ids
            differ in length; only some of the learner's replies have `log_probs`; or a segment of prompt or environment
            has a reward.
    """
    segments = [segment for dialogue in dialogues for segment in dialogue]
    if not segments:
        raise ValueError("a batch needs at least one dialogue")
    row = np.repeat(np.arange(len(dialogues)), [len(dialogue) for dialogue in dialogues])  # (S,)
    lengths = np.array([len(segment.ids) for segment in segments])  # (S,)
    by = np.array([segment.by for segment in segments])  # (S,)
    totals = np.bincount(row, lengths, len(dialogues)).astype(int)  # (B,)
    inside = np.arange(totals.max()) < totals[:, None]  # (B, W): True for each token, in order

    speaker = _spread(by.repeat(lengths), inside)
    last = _last_decided(speaker)  # (B,)
    ids = _spread(_joined([segment.ids for segment in segments], np.int64), inside)
    place = np.arange(ids.shape[1])
    ids[place > last[:, None]] = 0
    steps = slice(1, last.max() + 1)  # all tokens except the first are actions
    actions = torch.from_numpy(ids[:, steps])
    expert = torch.from_numpy(speaker[:, steps] == EXPERT)
    return Batch(
        obs=torch.from_numpy(np.where(place < last[:, None], ids, 0)[:, : last.max()]),
        actions=actions,
        valid=torch.from_numpy(speaker[:, steps] != READ),
        mask=torch.from_numpy(speaker[:, steps] == LEARNER),
        log_probs=_placed(_log_probs(segments, lengths), inside, steps),
        rewards=_placed(_rewards(segments, lengths), inside, steps),
        final_obs=torch.from_numpy(ids[np.arange(len(ids)), last]),
        terminated=torch.ones(len(dialogues), dtype=torch.bool),
        expert_actions=actions,
        expert_mask=expert,
    )


def _last_decided(speaker: np.ndarray) -> np.ndarray:
    """The index of each row's last token that is from the learner or the expert.  speaker (B, W) → (B,)"""
    decided = speaker != READ
    for bad, fault in (
        (decided[:, 0], "does not begin with a prompt: a prompt needs at least one token"),
        (~decided.any(1), "has no reply: a reply needs at least the stop token; leave the dialogue out"),
    ):
        if bad.any():
            raise ValueError(f"dialogue {int(bad.argmax())} {fault}")
    return speaker.shape[1] - 1 - decided[:, ::-1].argmax(1)


def _log_probs(segments: Sequence[Segment], lengths: np.ndarray) -> np.ndarray | None:
    """(N,) over all tokens; None if no segment has any."""
    if all(segment.log_probs is None for segment in segments):
        return None
    parts = []
    for segment, length in zip(segments, lengths.tolist(), strict=True):
        log_probs = segment.log_probs
        if log_probs is None and segment.by == LEARNER and length:
            raise ValueError("log_probs: only some of the learner's replies have them; give them for all or for none")
        if log_probs is not None and len(log_probs) != length:
            raise ValueError(f"log_probs: got {len(log_probs)} for a reply of {length} tokens")
        parts.append([np.inf if segment.by == EXPERT else 0.0] * length if log_probs is None else log_probs)
    return _joined(parts, np.float32)


def _rewards(segments: Sequence[Segment], lengths: np.ndarray) -> np.ndarray | None:
    """(N,) over all tokens; None if no segment has any."""
    with_reward = [i for i, segment in enumerate(segments) if segment.reward is not None]
    if not with_reward:
        return None
    if any(segments[i].by == READ or not lengths[i] for i in with_reward):
        raise ValueError("reward: a segment without a decision has one; give it to the reply before")
    rewards = np.zeros(lengths.sum(), np.float32)
    rewards[lengths.cumsum()[with_reward] - 1] = [segments[i].reward for i in with_reward]
    return rewards


def _joined(parts: Sequence[Any], dtype: type) -> np.ndarray:
    lists = (part.tolist() if isinstance(part, np.ndarray) else part for part in parts)
    return np.fromiter(chain.from_iterable(lists), dtype)


def _spread(flat: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Place the N entries of `flat` (N,) at the True places of `inside` (B, W), with 0 elsewhere, as (B, W)."""
    spread = np.zeros(inside.shape, flat.dtype)
    spread[inside] = flat
    return spread


def _placed(flat: np.ndarray | None, inside: np.ndarray, steps: slice) -> Tensor | None:
    return None if flat is None else torch.from_numpy(_spread(flat, inside)[:, steps])
