"""Split rows into micro-batches by number of rows or tokens. Groups stay whole, and rows of similar length together."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nlf.batch import Batch


def parts_of(
    lengths: Tensor, rows: int | None = None, tokens: int | None = None, group: Tensor | None = None
) -> list[Tensor]:
    """Row numbers of each part. Each row is in exactly one part, and there is at least one part.

    A part has at most `rows` rows and at most `tokens` places (number of rows × longest row). A row, or a group if
    `group` is given, is never split. If a single row or group exceeds the limit, this row or group becomes a part of
    its own. With `tokens`, the parts are packed by length. Otherwise, rows keep their order.
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
    for index in order.tolist():
        size, length = int(sizes[index]), int(longest[index])
        over_rows = rows is not None and height + size > rows
        over_tokens = tokens is not None and (height + size) * max(width, length) > tokens
        if height and (over_rows or over_tokens):
            number, height, width = number + 1, 0, 0
        part[index] = number
        height, width = height + size, max(width, length)
    return [(part[unit] == index).nonzero()[:, 0] for index in range(number + 1)]


def untrimmed(batch: Batch, rows: Tensor) -> Batch:
    """Select rows (n,) with all their columns, unlike `batch[rows]`."""
    return batch.map(lambda x: x[rows])


def row_lengths(steps: Tensor) -> Tensor:
    """Length of each row up to its last True step, (B,); `steps` (B, T) bool."""
    return (steps * torch.arange(1, steps.shape[1] + 1, device=steps.device)).amax(1)
