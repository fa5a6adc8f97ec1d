"""Micro-batches for gradient accumulation: as many rows as fit in memory, with the gradient of the whole batch."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.data_source import data_source
from lightning_nlf.maths.means import row_counts
from lightning_nlf.maths.parts import parts_of, row_lengths


def micro_batches(batch: Batch, trainer: L.Trainer) -> list[Batch]:
    """Split a batch by the DataModule's `rows_per_batch` or `tokens_per_batch`.

    Every rank gets the same number of parts.

    Ranked groups are not split, because their rows are compared. `totals` are dropped.
    """
    source = data_source(trainer)
    limits = source.rows_per_batch, source.tokens_per_batch
    if limits == (None, None):
        return [batch]
    used = batch.valid if batch.expert_mask is None else batch.valid | batch.expert_mask
    parts = parts_of(row_lengths(used), *limits, None if batch.rank is None else batch.group)
    count = len(parts)
    if trainer.world_size > 1:
        local = torch.tensor(count, device=batch.mask.device)
        count = int(trainer.strategy.reduce(local, reduce_op="max"))
    if count == 1:
        return [batch]
    cut = [batch[rows.to(batch.mask.device)] for rows in parts]
    return cut + [silent(cut[0])] * (count - len(cut))


def stamped(parts: list[Batch], batch: Batch) -> list[Batch]:
    """Add the totals of the whole batch to each part, so that the means of all parts sum to the mean of the whole."""
    if len(parts) == 1:
        return parts
    totals = batch.totals or {name: counts.sum() for name, counts in row_counts(batch).items()}
    return [replace(part, totals=totals) for part in parts]


def silent(batch: Batch) -> Batch:
    """A copy with nothing to learn from, for a rank with fewer parts, because each rank must join every all-reduce."""
    return replace(
        batch,
        mask=torch.zeros_like(batch.mask),
        expert_mask=None if batch.expert_mask is None else torch.zeros_like(batch.expert_mask),
        rank=None if batch.rank is None else torch.full_like(batch.rank, -1),
        view=None if batch.view is None else silent(batch.view),
        masks={name: torch.zeros_like(mask) for name, mask in batch.masks.items()},
    )
