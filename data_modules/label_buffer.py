"""Labels are dear and collections short-lived: what the expert once said is learned from again."""

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
    """Labelled rows of past collections, the oldest forgotten first.

    Args:
        updates: imitation steps after each collection, on top of its minibatches.
        rows: rows an update.
        capacity: rows remembered.
    """

    updates: Size = 30
    rows: Size = 256
    capacity: Size = 100_000
    kept: Batch | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        at_least(1, **{f"label_buffer.{name}": getattr(self, name) for name in ("updates", "rows", "capacity")})

    def add(self, labelled: Batch) -> None:
        """Remember rows with an `expert_mask`; their `mask` and `valid` are False, so nothing else learns from them."""
        if len(labelled) == 0:
            return
        kept = labelled if self.kept is None else stack_rows([self.kept, labelled])
        self.kept = kept[-self.capacity :]

    def draw(self, like: Batch, rng: np.random.Generator, least: int = 1) -> Batch:
        """Random rows, without repetition; where labels are short, filled up to `least` with rows that teach nothing.

        Before there are any labels, these are made of a row of `like`. Its `masks` are there, and False.
        """
        if self.kept is None:
            return _nothing(like, least)
        count = min(self.rows, len(self.kept))
        rows = torch.from_numpy(rng.choice(len(self.kept), count, replace=False))
        drawn = self.kept[rows].to(like.obs.device)
        if count < least:
            drawn = stack_rows([drawn, _nothing(drawn, least - count)])
        nowhere = torch.zeros_like(drawn.mask)
        return replace(drawn, masks={name: nowhere if x.ndim > 1 else nowhere[:, 0] for name, x in like.masks.items()})

    def state_dict(self) -> dict[str, Any]:
        if self.kept is None:
            return {}
        return {
            f.name: value
            for f in fields(Batch)
            if (value := getattr(self.kept, f.name)) is not None and f.name != "view"
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = Batch(**state) if state else None


def _nothing(like: Batch, rows: int) -> Batch:
    """The first row of `like`, so many times over, without anybody to learn from."""
    copies = like[torch.zeros(rows, dtype=torch.long)]
    nothing = torch.zeros_like(copies.mask)
    known = None if copies.expert_mask is None else nothing
    masks = {name: torch.zeros_like(mask) for name, mask in copies.masks.items()}
    return replace(copies, valid=nothing, mask=nothing, expert_mask=known, masks=masks, group=None)


def labelled_steps(batch: Batch) -> Batch:
    """Every labelled step as a row of its own: for policies that see one state at a time.

    batch (B, T) → (N, 1), N the True steps of `expert_mask`.
    """
    where = batch.expert_mask
    if where is None or batch.expert_actions is None:
        raise ValueError("no labels: the batch has no expert_mask and expert_actions")

    def steps(x: Tensor) -> Tensor:
        return x[where].unsqueeze(1)

    params = None if batch.expert_params is None else {name: steps(x) for name, x in batch.expert_params.items()}
    actions = steps(batch.expert_actions)
    known = torch.ones(len(actions), 1, dtype=torch.bool)
    return as_labels(
        Batch(
            obs=steps(batch.obs),
            actions=actions,
            valid=known,
            mask=known,
            expert_actions=actions,
            expert_mask=known,
            expert_params=params,
        )
    )


def as_labels(batch: Batch) -> Batch:
    """The rows with an expert to imitate and nothing else: no valid step, no return.

    What a term reads that finds no step to learn from is there, and 0.
    """
    nothing, zero = torch.zeros_like(batch.mask), torch.zeros(batch.mask.shape)
    return replace(
        batch, valid=nothing, mask=nothing, log_probs=zero, rewards=zero, values=zero, returns=zero, advantages=zero
    )
