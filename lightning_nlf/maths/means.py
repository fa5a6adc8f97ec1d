"""Means over masks, which do not depend on how rows are split into micro-batches, and the counts that divide them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_nlf.batch import Batch


def check_shapes(dimensions: int, /, **tensors: Tensor) -> None:
    """Refuse tensors that would broadcast: all must have the same shape with this number of dimensions.

    Raises: ValueError: the shapes differ; the message gives names and shapes.
    """
    shapes = {x.shape for x in tensors.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != dimensions:
        listed = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise ValueError(f"shapes: {listed}; they must all be equal, with {dimensions} dimensions")


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the True places of `mask`, (); 0 if there are none.  x and mask have the same shape.

    Padding may contain any value, including NaN, because it is replaced by 0 and not multiplied by 0.
    """
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def mean_or_zero(x: Tensor) -> Tensor:
    """Mean of x (N,), (); 0 if x is empty."""
    return x.sum() / max(len(x), 1)


def mask_named(batch: Batch, name: str) -> Tensor:
    """The mask of this name, (B, T) or (B,) bool: `valid`, `mask`, `expert_mask`, or one of `Batch.masks`.

    Raises: KeyError: the batch has no such mask.
    """
    if name == "expert_mask" and batch.expert_mask is None:
        return torch.zeros_like(batch.mask)
    mask: Tensor = getattr(batch, name) if name in ("valid", "mask", "expert_mask") else batch.masks[name]
    return mask


def count_of(batch: Batch, name: str) -> Tensor:
    """Number of steps or comparisons that a term is averaged over, ().

    Taken from `totals` if present, else counted here.
    """
    if name in batch.totals:
        return batch.totals[name]
    return row_counts(batch)[name].sum() if name in COMPARISONS else mask_named(batch, name).sum()


def row_counts(batch: Batch) -> dict[str, Tensor]:
    """Counts per row, each (B,): the number of True steps in each mask, and the row's share of its group's comparisons.

    The masks are the ones that `mask_named` accepts. `comparison_shares` gives the shares, which are 0 without ranks.
    """
    expert = torch.zeros_like(batch.mask) if batch.expert_mask is None else batch.expert_mask
    masks = {"valid": batch.valid, "mask": batch.mask, "expert_mask": expert} | batch.masks
    counts = {name: mask.sum(1) if mask.ndim > 1 else mask.long() for name, mask in masks.items()}
    unranked = batch.valid.new_full((len(batch),), -1, dtype=torch.long)
    group, rank = (unranked if x is None else x for x in (batch.group, batch.rank))
    return counts | comparison_shares(group, rank)


COMPARISONS = ("pairs", "strict_pairs", "rankings")


def comparison_shares(group: Tensor, rank: Tensor) -> dict[str, Tensor]:
    """Each row's share of the comparisons in its group, each (B,).

    The shares of a group sum to its number of comparisons.

    A group of K ranked rows has C(K, 2) `pairs`. Its `strict_pairs` are those without a tie. Its `rankings` are 1, or 0
    if all its ranked rows are tied.
    Args: group, rank (B,) int; rows of rank −1 are left out.
    """
    ranked = rank >= 0
    groups, of = group[ranked].unique(return_inverse=True)
    sizes = of.bincount(minlength=len(groups))[of].float()  # (B,) number of rows in each row's group
    levels, level = rank[ranked].unique(return_inverse=True)
    _, block, ties = (of * len(levels) + level).unique(return_inverse=True, return_counts=True)
    beaten = sizes - ties[block]  # rows of the group that have a different rank
    shares = dict(zip(COMPARISONS, ((sizes - 1) / 2, beaten / 2, (beaten > 0) / sizes), strict=True))
    nothing = torch.zeros(rank.shape, device=rank.device)
    return {name: nothing.masked_scatter(ranked, share) for name, share in shares.items()}


def stamp_totals(batches: list[Batch], totals: dict[str, Tensor], parts: int) -> list[Batch]:
    """Add `totals / parts` to the micro-batches of one optimizer step.

    Lightning averages over micro-batches and DDP averages over ranks, so together they average over `parts` losses. If
    the sum of each part is divided by the mean count per part, this average is the mean over all tokens.
    Args: totals: True steps of each mask, summed over all parts and ranks; parts: micro-batches × ranks.
    """
    return [replace(batch, totals={name: total / parts for name, total in totals.items()}) for batch in batches]
