"""Cut rows into micro-batches by a number of rows or tokens, groups whole, rows of like length together."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nlf.batch import Batch


def parts_of(
    lengths: Tensor, rows: int | None = None, tokens: int | None = None, group: Tensor | None = None
) -> list[Tensor]:
    """Row numbers of each part, in all every row once; at least one part.

    A part has at most `rows` rows, and at most `tokens` places: its rows times the longest of them. What cannot be cut
    further, a row or with `group` a group, is a part of its own where it is larger. With `tokens` the parts are packed
    by length; else the order stays.
    Args: lengths (B,) int, tokens of each row; group (B,) int: its rows stay together.
    """
    count = len(lengths)
    if rows is None and tokens is None or count < 2:
        return [torch.arange(count)]
    lengths = lengths.cpu()
    unit = torch.arange(count) if group is None else group.cpu().unique(return_inverse=True)[1]
    units = int(unit.max()) + 1
    sizes = unit.bincount(minlength=units)
    longest = torch.zeros(units, dtype=lengths.dtype).scatter_reduce(0, unit, lengths, "amax")
    first = torch.full((units,), count).scatter_reduce(0, unit, torch.arange(count), "amin")
    order = (first if tokens is None else longest).argsort(stable=True)
    part = torch.zeros(units, dtype=torch.long)
    number, height, width = 0, 0, 0
    for each in order.tolist():
        size, length = int(sizes[each]), int(longest[each])
        over_rows = rows is not None and height + size > rows
        over_tokens = tokens is not None and (height + size) * max(width, length) > tokens
        if height and (over_rows or over_tokens):
            number, height, width = number + 1, 0, 0
        part[each] = number
        height, width = height + size, max(width, length)
    return [(part[unit] == each).nonzero()[:, 0] for each in range(number + 1)]


def untrimmed(batch: Batch, rows: Tensor) -> Batch:
    """The chosen rows (n,) with all their columns, unlike `batch[rows]`."""
    return batch.map(lambda x: x[rows])


def row_lengths(steps: Tensor) -> Tensor:
    """(B,) places of each row up to its last True step; `steps` (B, T) bool."""
    return (steps * torch.arange(1, steps.shape[1] + 1, device=steps.device)).amax(1)
