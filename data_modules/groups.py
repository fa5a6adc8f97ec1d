"""Rows that belong together: which group each is in, random parts that split none, and the order within."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_nlf.batch import Batch


def grouped(batch: Batch) -> tuple[Tensor, int]:
    """Which group each row is in, (B,) from 0 to n − 1, and n. Without `group` every row is alone."""
    if batch.group is None:
        return torch.arange(len(batch)), len(batch)
    names, places = batch.group.cpu().unique(return_inverse=True)
    return places, len(names)


def shuffled(batch: Batch, parts: int, rng: np.random.Generator) -> list[Tensor]:
    """Row indices in `parts` random parts of nearly equal numbers of groups; rows of one group stay together.

    Raises:
        ValueError: fewer groups than parts.
    """
    places, groups = grouped(batch)
    if groups < parts:
        what = "rows" if batch.group is None else "groups"
        raise ValueError(f"minibatches: {parts} parts asked of a collection of {groups} {what}")
    order = torch.from_numpy(rng.permutation(groups))
    return [torch.isin(places, part).nonzero()[:, 0] for part in order.tensor_split(parts)]


def ranks(score: Tensor, group: Tensor) -> Tensor:
    """(B,) 0 for the best of its group, equal for equal scores."""
    better = (group[:, None] == group[None, :]) & (score[None, :] > score[:, None])
    return better.sum(1)
