"""Sequence packing with shared prefixes: every needed token of a batch is computed exactly once."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nlf.language import kernels
from lightning_nlf.language.attention import attention, split_heads

WORTHWHILE = 0.1  # sharing costs a second attention, so sharing must save at least this share of the tokens


@dataclass(frozen=True)
class Grid:
    """A range of the flat tokens, arranged as right-padded rows."""

    first: int  # index of the first token in the range
    rows: int
    width: int
    slots: Tensor | None  # (n,) place of each token in rows · width; None if there is no padding
    tokens: Tensor | None  # (rows · width,) token at each place, arbitrary at padding
    count: int
    spans: Tensor  # (rows, 2) first token of each row among all tokens, and number of its tokens

    def spread(self, x: Tensor) -> Tensor:
        """Arrange flat x (N, …) as (rows, width, …). Padding has arbitrary values."""
        tokens = x[self.first : self.first + self.count]
        tokens = tokens if self.tokens is None else tokens.index_select(0, self.tokens)
        return tokens.view(self.rows, self.width, *x.shape[1:])

    def collect(self, x: Tensor) -> Tensor:
        """Flatten x (rows, width, …) to (count, …)."""
        x = x.flatten(0, 1)
        return x if self.slots is None else x.index_select(0, self.slots)


@dataclass(frozen=True)
class Packing:
    """The N tokens to compute. Stems are prefixes of one or more rows, and leaves continue a stem."""

    ids: Tensor  # (N,)
    positions: Tensor  # (N,)
    outputs: Tensor  # (n,) the requested tokens, in the order of the rows
    stems: Grid
    leaves: Grid | None = None
    stem: Tensor | None = None  # (leaves,) the stem that each leaf continues
    cut: Tensor | None = None  # (leaves,) number of tokens of this stem that each leaf attends to

    def attend(self, layer: int, qkv: Tensor, heads: int) -> Tensor:
        """Attention in any layer: (N, heads + 2 · kv_heads, e) → (N, heads · e)."""
        if kernels.fit(qkv, qkv.shape[-1]):
            return kernels.attend_spans(qkv, self.spans, heads)
        queries, keys, values = split_heads(self.stems.spread(qkv), heads)
        out = self.stems.collect(attention(queries, keys, values))
        if self.leaves is None:
            return out
        assert self.stem is not None
        queries, own_keys, own_values = split_heads(self.leaves.spread(qkv), heads)
        stem_width = self.bias.shape[-1] - self.leaves.width  # width of the stems
        keys = torch.cat([keys[:, :, :stem_width].index_select(0, self.stem), own_keys], 2)
        values = torch.cat([values[:, :, :stem_width].index_select(0, self.stem), own_values], 2)
        return torch.cat([out, self.leaves.collect(attention(queries, keys, values, self.bias))])

    @cached_property
    def spans(self) -> Tensor:
        """(stems + leaves, 4): first token and number of tokens, of each stem or leaf and of the stem it continues."""
        stems = self.stems.spans
        spans = F.pad(stems if self.leaves is None else torch.cat([stems, self.leaves.spans]), (0, 2))
        if self.stem is not None and self.cut is not None:
            spans[len(stems) :, 2], spans[len(stems) :, 3] = stems[self.stem, 0], self.cut
        return spans

    @cached_property
    def bias(self) -> Tensor:
        """(leaves, 1, S, P + S): 0 where a leaf attends to its stem and to itself, else −∞."""
        assert self.leaves is not None and self.cut is not None
        longest, width, device = int(self.cut.max()), self.leaves.width, self.cut.device
        bias = torch.zeros(len(self.cut), 1, width, longest + width, device=device)
        unseen = torch.arange(longest, device=device) >= self.cut[:, None]
        bias[..., :longest].masked_fill_(unseen[:, None, None], -torch.inf)
        later = torch.ones(width, width, dtype=torch.bool, device=device).triu(1)
        bias[..., longest:].masked_fill_(later, -torch.inf)
        return bias

    def to(self, device: torch.device) -> Packing:
        return self if device.type == "cpu" else _moved(self, device)


def _moved(x: Any, device: torch.device) -> Any:
    """Move a tensor, or all tensors of a packing, to the device."""
    if isinstance(x, Grid | Packing):
        return type(x)(**{field.name: _moved(getattr(x, field.name), device) for field in fields(x)})
    return x.to(device, non_blocking=True) if isinstance(x, Tensor) else x


def pack(ids: Tensor, where: Tensor, share: bool = True) -> Packing:
    """Find the tokens of ids (B, T), on the CPU, that the hidden states at `where` (B, T) depend on.

    Tokens after the last requested token of a row count as padding, and are left out.
    Args: share: whether to look for rows with a common prefix.
    """
    steps = torch.arange(ids.shape[1])
    lengths = torch.where(where, steps + 1, 0).amax(1)  # (B,)
    stem, cut = _stems(ids, lengths) if share else (torch.arange(len(ids)), lengths)
    # Each stem is computed in the first row that has this stem.
    rows = torch.full((int(stem.max()) + 1,), len(ids)).scatter_reduce(0, stem, torch.arange(len(ids)), "amin")
    stems, stem_tokens, stem_first = _grid(torch.zeros_like(rows), cut[rows], 0)
    leaf_rows = (lengths > cut).nonzero()[:, 0]  # rows with a leaf
    leaves, leaf_tokens, leaf_first = _grid(cut[leaf_rows], lengths[leaf_rows] - cut[leaf_rows], stems.count)
    first = torch.zeros_like(lengths).index_copy(0, leaf_rows, leaf_first)
    slots = torch.where(steps < cut[:, None], stem_first[stem][:, None] + steps, (first - cut)[:, None] + steps)
    positions = torch.cat([stem_tokens[1], leaf_tokens[1]])
    row = torch.cat([rows[stem_tokens[0]], leaf_rows[leaf_tokens[0]]])
    packed = Packing(ids[row, positions], positions, slots[where], stems)
    if not len(leaf_rows):
        return packed
    return replace(packed, leaves=leaves, stem=stem[leaf_rows], cut=cut[leaf_rows])


def _grid(start: Tensor, lengths: Tensor, first: int) -> tuple[Grid, tuple[Tensor, Tensor], Tensor]:
    """The `Grid` of rows of these lengths; row and position of each token, both (n,); place of each first token."""
    width = int(lengths.amax()) if len(lengths) else 0
    valid = torch.arange(width) < lengths[:, None]
    row, step = valid.nonzero(as_tuple=True)
    offsets = lengths.cumsum(0) - lengths
    full = len(row) == valid.numel()
    tokens = None if full else torch.where(valid, offsets[:, None] + torch.arange(width), 0).flatten()
    slots = None if full else row * width + step
    offsets = first + offsets
    grid = Grid(first, len(lengths), width, slots, tokens, len(row), torch.stack([offsets, lengths], 1))
    return grid, (row, start[row] + step), offsets


def _stems(ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The stem of each row and the stem's length, both (B,), chosen so that the fewest tokens remain.

    In alphabetical order, rows with a common prefix are adjacent. Dynamic programming finds the best groups.
    """
    count = len(ids)
    texts, sizes = ids.tolist(), lengths.tolist()
    order = sorted(range(count), key=lambda row: texts[row][: sizes[row]])
    ordered, ends = ids[order], lengths[order]
    shared = (ordered[1:] == ordered[:-1]).long().cumprod(1).sum(1)
    with_next = shared.minimum(ends[1:]).minimum(ends[:-1]).numpy()  # (B − 1,)
    savings = np.zeros(count + 1, dtype=np.int64)  # savings[n]: most tokens saved in the first n sorted rows
    begin = np.zeros(count + 1, dtype=np.int64)  # start of the last group of rows in that solution
    for stop in range(1, count + 1):
        prefixes = np.minimum.accumulate(with_next[: stop - 1][::-1])[::-1]  # shared by the rows up to `stop`
        gains = savings[: stop - 1] + prefixes * np.arange(stop - 1, 0, -1)
        best = int(gains.argmax()) if stop > 1 else 0
        better = stop > 1 and gains[best] > savings[stop - 1]
        savings[stop], begin[stop] = (gains[best], best) if better else (savings[stop - 1], stop - 1)
    if savings[count] < WORTHWHILE * sum(sizes):
        return torch.arange(count), lengths
    stem, cut, stop, number = torch.zeros(count, dtype=torch.long), lengths.clone(), count, 0
    while stop:
        start = int(begin[stop])
        members = torch.tensor(order[start:stop])
        stem[members] = number
        if stop - start > 1:
            cut[members] = int(with_next[start : stop - 1].min())
        stop, number = start, number + 1
    return stem, cut
