"""Groups of rows: the group index of each row, random splits that keep groups together, and ranks within groups."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_nlf.batch import Batch


def grouped(batch: Batch) -> tuple[Tensor, int]:
    """The group index of each row, (B,) from 0 to n − 1, and the number of groups n.

    In a batch without `group`, every row is a group of its own.
    """
    if batch.group is None:
        return torch.arange(len(batch)), len(batch)
    names, places = batch.group.cpu().unique(return_inverse=True)
    return places, len(names)


def shuffled(batch: Batch, parts: int, rng: np.random.Generator) -> list[Tensor]:
    """Split the row indices at random into `parts` parts with nearly equal numbers of groups; no group is split.

    Raises:
        ValueError: there are fewer groups than parts.
    """
    places, groups = grouped(batch)
    if groups < parts:
        unit = "rows" if batch.group is None else "groups"
        raise ValueError(f"minibatches: a collection of {groups} {unit} cannot be split into {parts} parts")
    order = torch.from_numpy(rng.permutation(groups))
    return [torch.isin(places, part).nonzero()[:, 0] for part in order.tensor_split(parts)]


def ranks(score: Tensor, group: Tensor) -> Tensor:
    """Rank of each row in its group, (B,): 0 for the highest score. Rows with equal scores have equal ranks."""
    better = (group[:, None] == group[None, :]) & (score[None, :] > score[:, None])
    return better.sum(1)
