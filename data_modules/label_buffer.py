"""Label buffer: expert labels are expensive, so it keeps them for imitation in later collections."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.ranges import at_least
from lightning_nlf.batch import Batch, stack_rows
from lightning_nlf.numbers import Size


@dataclass
class LabelBuffer:
    """Store labelled rows of past collections. When the buffer is full, the oldest rows are dropped.

    Args:
        updates: imitation steps after each collection, in addition to its minibatches.
        rows: rows per update.
        capacity: maximum number of stored rows.
    """

    updates: Size = 30
    rows: Size = 256
    capacity: Size = 100_000
    labels: Batch | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        at_least(1, **{f"label_buffer.{name}": getattr(self, name) for name in ("updates", "rows", "capacity")})

    def add(self, labelled: Batch) -> None:
        """Add rows with an `expert_mask`. Their `mask` and `valid` are False, so only imitation learns from them."""
        if len(labelled) == 0:
            return
        labels = labelled if self.labels is None else stack_rows([self.labels, labelled])
        self.labels = labels[-self.capacity :]

    def draw(self, like: Batch, rng: np.random.Generator, least: int = 1) -> Batch:
        """Draw random rows without repetition, and pad them to at least `least` rows with rows that teach nothing.

        If the buffer is empty, all rows teach nothing; they are copies of a row of `like`. The rows have the `masks` of
        `like` by name, with False everywhere.
        """
        if self.labels is None:
            return _nothing(like, least)
        count = min(self.rows, len(self.labels))
        rows = torch.from_numpy(rng.choice(len(self.labels), count, replace=False))
        batch = self.labels[rows].to(like.obs.device)
        if count < least:
            batch = stack_rows([batch, _nothing(batch, least - count)])
        nowhere = torch.zeros_like(batch.mask)
        return replace(batch, masks={name: nowhere if x.ndim > 1 else nowhere[:, 0] for name, x in like.masks.items()})

    def state_dict(self) -> dict[str, Any]:
        if self.labels is None:
            return {}
        return {
            f.name: value
            for f in fields(Batch)
            if (value := getattr(self.labels, f.name)) is not None and f.name != "view"
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.labels = Batch(**state) if state else None


def _nothing(like: Batch, rows: int) -> Batch:
    """`rows` copies of the first row of `like`, with all masks False, so that nothing is learned from them."""
    copies = like[torch.zeros(rows, dtype=torch.long)]
    nothing = torch.zeros_like(copies.mask)
    expert_mask = None if copies.expert_mask is None else nothing
    masks = {name: torch.zeros_like(mask) for name, mask in copies.masks.items()}
    return replace(copies, valid=nothing, mask=nothing, expert_mask=expert_mask, masks=masks, group=None)


def labelled_steps(batch: Batch) -> Batch:
    """Make every labelled step a row of its own, for policies that see one state at a time.

    batch (B, T) → (N, 1), where N is the number of True steps in `expert_mask`.
    """
    where = batch.expert_mask
    if where is None or batch.expert_actions is None:
        raise ValueError("no labels: the batch has no expert_mask and expert_actions; give it an expert's labels")

    def steps(x: Tensor) -> Tensor:
        return x[where].unsqueeze(1)

    params = None if batch.expert_params is None else {name: steps(x) for name, x in batch.expert_params.items()}
    actions = steps(batch.expert_actions)
    everywhere = torch.ones(len(actions), 1, dtype=torch.bool)
    return as_labels(
        Batch(
            obs=steps(batch.obs),
            actions=actions,
            valid=everywhere,
            mask=everywhere,
            expert_actions=actions,
            expert_mask=everywhere,
            expert_params=params,
        )
    )


def as_labels(batch: Batch) -> Batch:
    """The rows with the expert's labels only: `expert_*` is kept, and no step is valid.

    The fields that other objective terms use are 0, because a term reads its fields even if its mask is empty.
    """
    nothing, zero = torch.zeros_like(batch.mask), torch.zeros(batch.mask.shape)
    return replace(
        batch, valid=nothing, mask=nothing, log_probs=zero, rewards=zero, values=zero, returns=zero, advantages=zero
    )
