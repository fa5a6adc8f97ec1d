"""Means over masks that do not depend on how rows were cut into micro-batches, and the counts they are divided by."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_nlf.batch import Batch


def check_shapes(dimensions: int, /, **tensors: Tensor) -> None:
    """Refuse tensors that would broadcast: all must have one shape, of so many dimensions.

    Raises: ValueError: with the names and shapes.
    """
    shapes = {x.shape for x in tensors.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != dimensions:
        named = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise ValueError(f"shapes: {named}; all must be the same, of {dimensions} dimensions")


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the True places of `mask`, (); 0 without any.  x, mask of one shape

    Padding may hold anything, NaN too: it is selected away, not multiplied by 0.
    """
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def mean_or_zero(x: Tensor) -> Tensor:
    """Mean of x (N,), (); 0 without any."""
    return x.sum() / max(len(x), 1)


def mask_named(batch: Batch, name: str) -> Tensor:
    """A mask that a term may be a mean over, (B, T) or (B,) bool: `valid`, `mask`, `expert_mask`, or of `Batch.masks`.

    Raises: KeyError: the batch has no such mask.
    """
    if name == "expert_mask" and batch.expert_mask is None:
        return torch.zeros_like(batch.mask)
    mask: Tensor = getattr(batch, name) if name in ("valid", "mask", "expert_mask") else batch.masks[name]
    return mask


def count_of(batch: Batch, name: str) -> Tensor:
    """What a term is a mean over, (): as stamped by the loader, else the steps or comparisons of this batch."""
    if name in batch.totals:
        return batch.totals[name]
    return row_counts(batch)[name].sum() if name in COMPARISONS else mask_named(batch, name).sum()


def row_counts(batch: Batch) -> dict[str, Tensor]:
    """What a term may be a mean over, by row, each (B,): True steps of each mask, and the row's share of comparisons.

    Masks: those of `mask_named`. Comparisons: those of `comparison_shares`, 0 without ranks.
    """
    expert = torch.zeros_like(batch.mask) if batch.expert_mask is None else batch.expert_mask
    masks = {"valid": batch.valid, "mask": batch.mask, "expert_mask": expert} | batch.masks
    counts = {name: mask.sum(1) if mask.ndim > 1 else mask.long() for name, mask in masks.items()}
    unranked = batch.valid.new_full((len(batch),), -1, dtype=torch.long)
    group, rank = (unranked if x is None else x for x in (batch.group, batch.rank))
    return counts | comparison_shares(group, rank)


COMPARISONS = ("pairs", "strict_pairs", "rankings")


def comparison_shares(group: Tensor, rank: Tensor) -> dict[str, Tensor]:
    """Each row's share of what the ranked rows of its group are compared in, each (B,); a group's shares sum to it.

    `pairs`: C(K, 2); `strict_pairs`: those that are no tie; `rankings`: 1 where not all of them are tied.
    Args: group, rank (B,) int; rank −1 takes no part.
    """
    ranked = rank >= 0
    groups, of = group[ranked].unique(return_inverse=True)
    sizes = of.bincount(minlength=len(groups))[of].float()  # of each row's group
    levels, level = rank[ranked].unique(return_inverse=True)
    _, block, ties = (of * len(levels) + level).unique(return_inverse=True, return_counts=True)
    beaten = sizes - ties[block]  # those that stand above or below, not beside
    shares = dict(zip(COMPARISONS, ((sizes - 1) / 2, beaten / 2, (beaten > 0) / sizes), strict=True))
    nothing = torch.zeros(rank.shape, device=rank.device)
    return {name: nothing.masked_scatter(ranked, share) for name, share in shares.items()}


def stamp_totals(batches: list[Batch], totals: dict[str, Tensor], parts: int) -> list[Batch]:
    """The micro-batches of one optimizer step, each with `totals / parts`.

    Lightning averages over micro-batches and DDP over ranks, `parts` in all; dividing each part's sum by the
    *mean* count per part makes that average the mean over all tokens.
    Args: totals: True steps of each mask, summed over all parts and ranks; parts: micro-batches × ranks.
    """
    return [replace(batch, totals={name: total / parts for name, total in totals.items()}) for batch in batches]
