"""Where token sequences become rows of a batch. Token in, token out: nothing is tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_nlf.batch import Batch

READ, LEARNER, EXPERT = range(3)  # who said it: prompt or environment, which nobody decided; the learner; the expert


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of a dialogue that one party said in one go.

    Args:
        ids: the tokens; of a reply its stop token too.
        by: READ, LEARNER or EXPERT.
        log_probs: of the tokens as they were sampled, as many as ids.
        reward: paid at the last token.
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
    """One row for each prompt and the reply to it.

    Args: by: LEARNER or EXPERT, who replied.
    Returns, raises: as `as_batch`.
    """
    return as_batch([(Segment(prompt), Segment(reply, by)) for prompt, reply in zip(prompts, replies, strict=True)])


def as_batch(dialogues: Sequence[Sequence[Segment]]) -> Batch:
    """One row for each dialogue, right-padded; the action at t is token t + 1.

    A row ends with its last reply: what is read after it leads to nothing. Padding is 0, and nobody reads it.
    Every dialogue has terminated.

    Returns: with `log_probs` and `rewards` if any reply has them: an expert without `log_probs` was certain, +∞; a
        reply without a reward earned 0. `group`, `rank` and `score` are the caller's to add.
    Raises:
        ValueError: no dialogue at all; one that does not begin with a prompt, or has no reply; `log_probs` of another
            length than their reply, or of some of the learner's replies only; a reward for what nobody decided.
    """
    segments = [segment for dialogue in dialogues for segment in dialogue]
    if not segments:
        raise ValueError("there is no dialogue to make a batch of")
    row = np.repeat(np.arange(len(dialogues)), [len(dialogue) for dialogue in dialogues])  # (S,)
    lengths = np.array([len(segment.ids) for segment in segments])  # (S,)
    by = np.array([segment.by for segment in segments])  # (S,)
    said = np.bincount(row, lengths, len(dialogues)).astype(int)  # (B,)
    inside = np.arange(said.max()) < said[:, None]  # (B, W): one True for each token, in their order

    who = _spread(by.repeat(lengths), inside)
    last = _last_decided(who)  # (B,)
    ids = _spread(_joined([segment.ids for segment in segments], np.int64), inside)
    place = np.arange(ids.shape[1])
    ids[place > last[:, None]] = 0
    steps = slice(1, last.max() + 1)  # what is decided: all tokens but the first
    actions = torch.from_numpy(ids[:, steps])
    expert = torch.from_numpy(who[:, steps] == EXPERT)
    return Batch(
        obs=torch.from_numpy(np.where(place < last[:, None], ids, 0)[:, : last.max()]),
        actions=actions,
        valid=torch.from_numpy(who[:, steps] != READ),
        mask=torch.from_numpy(who[:, steps] == LEARNER),
        log_probs=_placed(_log_probs(segments, lengths), inside, steps),
        rewards=_placed(_rewards(segments, lengths), inside, steps),
        final_obs=torch.from_numpy(ids[np.arange(len(ids)), last]),
        terminated=torch.ones(len(dialogues), dtype=torch.bool),
        expert_actions=actions,
        expert_mask=expert,
    )


def _last_decided(who: np.ndarray) -> np.ndarray:
    """The place of each row's last decided token.  who (B, W) → (B,)"""
    decided = who != READ
    for bad, what in (
        (decided[:, 0], "does not begin with a prompt of at least one token: nothing leads to its first action"),
        (~decided.any(1), "has no reply: give it at least the stop token, or leave it out"),
    ):
        if bad.any():
            raise ValueError(f"dialogue {int(bad.argmax())} {what}")
    return who.shape[1] - 1 - decided[:, ::-1].argmax(1)


def _log_probs(segments: Sequence[Segment], lengths: np.ndarray) -> np.ndarray | None:
    """(N,) over all tokens; None if there are none."""
    if all(segment.log_probs is None for segment in segments):
        return None
    parts = []
    for segment, length in zip(segments, lengths.tolist(), strict=True):
        own = segment.log_probs
        if own is None and segment.by == LEARNER and length:
            raise ValueError("log_probs: some of the learner's replies have them and some have not")
        if own is not None and len(own) != length:
            raise ValueError(f"log_probs: {len(own)} for a reply of {length} tokens")
        parts.append([np.inf if segment.by == EXPERT else 0.0] * length if own is None else own)
    return _joined(parts, np.float32)


def _rewards(segments: Sequence[Segment], lengths: np.ndarray) -> np.ndarray | None:
    """(N,) over all tokens; None if there are none."""
    paid = [i for i, segment in enumerate(segments) if segment.reward is not None]
    if not paid:
        return None
    if any(segments[i].by == READ or not lengths[i] for i in paid):
        raise ValueError("reward: of a segment in which nothing was decided; it belongs to the reply before")
    rewards = np.zeros(lengths.sum(), np.float32)
    rewards[lengths.cumsum()[paid] - 1] = [segments[i].reward for i in paid]
    return rewards


def _joined(parts: Sequence[Any], dtype: type) -> np.ndarray:
    lists = (part.tolist() if isinstance(part, np.ndarray) else part for part in parts)
    return np.fromiter(chain.from_iterable(lists), dtype)


def _spread(flat: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """flat (N,) at the N True places of `inside` (B, W), 0 elsewhere.  (B, W)"""
    spread = np.zeros(inside.shape, flat.dtype)
    spread[inside] = flat
    return spread


def _placed(flat: np.ndarray | None, inside: np.ndarray, steps: slice) -> Tensor | None:
    return None if flat is None else torch.from_numpy(_spread(flat, inside)[:, steps])
