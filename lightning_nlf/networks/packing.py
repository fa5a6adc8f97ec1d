"""Which tokens of a batch are computed: none that nobody asks for, and what rows begin with together only once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_nlf.networks.attention import attention, split_heads

WORTHWHILE = 0.1  # sharing costs a second attention, and pays from this share of tokens saved


@dataclass(frozen=True)
class Grid:
    """Some of the flat tokens as right-padded rows."""

    first: int  # of its tokens, that stand next to each other
    rows: int
    width: int
    slots: Tensor | None  # (n,) where each token stands in rows · width; None if there is no padding
    tokens: Tensor | None  # (rows · width,) the token at each place, any where there is none
    count: int

    def spread(self, x: Tensor) -> Tensor:
        """The flat (N, …) as (rows, width, …); padding holds something."""
        own = x[self.first : self.first + self.count]
        own = own if self.tokens is None else own.index_select(0, self.tokens)
        return own.view(self.rows, self.width, *x.shape[1:])

    def collect(self, x: Tensor) -> Tensor:
        """(rows, width, …) as flat (count, …)."""
        x = x.flatten(0, 1)
        return x if self.slots is None else x.index_select(0, self.slots)

    def to(self, device: torch.device) -> Grid:
        moved = (None if x is None else x.to(device, non_blocking=True) for x in (self.slots, self.tokens))
        return Grid(self.first, self.rows, self.width, *moved, self.count)


@dataclass(frozen=True)
class Packing:
    """The N tokens to compute: stems, each the start of one or more rows, and the leaves that go on from a stem."""

    ids: Tensor  # (N,)
    positions: Tensor  # (N,)
    wanted: Tensor  # (n,) the tokens that were asked for, in the order of the rows
    stems: Grid
    leaves: Grid | None = None
    stem: Tensor | None = None  # (leaves,) which one each leaf goes on from
    bias: Tensor | None = None  # (leaves, 1, S, P + S): what a leaf sees of its stem and of itself

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """(N, heads + 2 · kv_heads, e) → (N, heads · e)"""
        queries, keys, values = split_heads(self.stems.spread(qkv), heads)
        out = self.stems.collect(attention(queries, keys, values))
        if self.leaves is None:
            return out
        assert self.stem is not None and self.bias is not None
        queries, own_keys, own_values = split_heads(self.leaves.spread(qkv), heads)
        seen = self.bias.shape[-1] - self.leaves.width
        keys = torch.cat([keys[:, :, :seen].index_select(0, self.stem), own_keys], 2)
        values = torch.cat([values[:, :, :seen].index_select(0, self.stem), own_values], 2)
        return torch.cat([out, self.leaves.collect(attention(queries, keys, values, self.bias))])

    def to(self, device: torch.device) -> Packing:
        if device.type == "cpu":
            return self
        ids, positions, wanted, stem, bias = (
            None if x is None else x.to(device, non_blocking=True)
            for x in (self.ids, self.positions, self.wanted, self.stem, self.bias)
        )
        assert ids is not None and positions is not None and wanted is not None
        leaves = None if self.leaves is None else self.leaves.to(device)
        return Packing(ids, positions, wanted, self.stems.to(device), leaves, stem, bias)


def pack(ids: Tensor, where: Tensor, share: bool = True) -> Packing:
    """What must be computed of ids (B, T), on the CPU, for the hidden states where `where` (B, T) is True.

    Tokens behind a row's last wanted one are padding: nobody sees them.
    Args: share: find the rows that begin alike.
    """
    steps = torch.arange(ids.shape[1])
    lengths = torch.where(where, steps + 1, 0).amax(1)  # (B,)
    stem, cut = _stems(ids, lengths) if share else _apart(lengths)
    # one row stands for each stem: the first that has it
    rows = torch.full((int(stem.max()) + 1,), len(ids)).scatter_reduce(0, stem, torch.arange(len(ids)), "amin")
    stems, stem_tokens, stem_first = _grid(torch.zeros_like(rows), cut[rows], 0)
    own = (lengths > cut).nonzero()[:, 0]  # rows with a leaf
    leaves, leaf_tokens, leaf_first = _grid(cut[own], lengths[own] - cut[own], stems.count)
    first = torch.zeros_like(lengths).index_copy(0, own, leaf_first)
    slots = torch.where(steps < cut[:, None], stem_first[stem][:, None] + steps, (first - cut)[:, None] + steps)
    positions = torch.cat([stem_tokens[1], leaf_tokens[1]])
    row = torch.cat([rows[stem_tokens[0]], own[leaf_tokens[0]]])
    packed = Packing(ids[row, positions], positions, slots[where], stems)
    if not len(own):
        return packed
    seen = torch.arange(int(cut[own].amax())) < cut[own][:, None]  # (leaves, P)
    causal = torch.ones(leaves.width, leaves.width, dtype=torch.bool).tril().expand(len(own), -1, -1)
    allowed = torch.cat([seen[:, None].expand(-1, leaves.width, -1), causal], 2)
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)[:, None]
    return Packing(packed.ids, positions, packed.wanted, stems, leaves, stem[own], bias)


def _grid(start: Tensor, lengths: Tensor, first: int) -> tuple[Grid, tuple[Tensor, Tensor], Tensor]:
    """Rows of some lengths; the row and position of each token (2 · (n,)), and the flat place of each row's first."""
    width = int(lengths.amax()) if len(lengths) else 0
    there = torch.arange(width) < lengths[:, None]
    row, step = there.nonzero(as_tuple=True)
    offsets = lengths.cumsum(0) - lengths
    full = len(row) == there.numel()
    tokens = None if full else torch.where(there, offsets[:, None] + torch.arange(width), 0).flatten()
    slots = None if full else row * width + step
    grid = Grid(first, len(lengths), width, slots, tokens, len(row))
    return grid, (row, start[row] + step), first + offsets


def _apart(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Every row a stem of its own: which one, and how much of the row it is, both (B,)."""
    return torch.arange(len(lengths)), lengths


def _stems(ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The same with rows that begin alike on one stem, so that the fewest tokens are left.

    In alphabetical order such rows are next to each other, and the best cuts are found by dynamic programming.
    """
    count = len(ids)
    texts, sizes = ids.tolist(), lengths.tolist()
    order = sorted(range(count), key=lambda row: texts[row][: sizes[row]])
    ordered, ends = ids[order], lengths[order]
    alike = (ordered[1:] == ordered[:-1]).long().cumprod(1).sum(1)
    alike = alike.minimum(ends[1:]).minimum(ends[:-1]).numpy()  # (B − 1,) with the next in order
    saved = np.zeros(count + 1, dtype=np.int64)  # at most, in the first rows of the order
    begin = np.zeros(count + 1, dtype=np.int64)  # of the last stem's rows, for that
    for stop in range(1, count + 1):
        common = np.minimum.accumulate(alike[: stop - 1][::-1])[::-1]  # of the rows from each one to `stop`
        gains = saved[: stop - 1] + common * np.arange(stop - 1, 0, -1)
        best = int(gains.argmax()) if stop > 1 else 0
        better = stop > 1 and gains[best] > saved[stop - 1]
        saved[stop], begin[stop] = (gains[best], best) if better else (saved[stop - 1], stop - 1)
    if saved[count] < WORTHWHILE * sum(sizes):
        return _apart(lengths)
    stem, cut, stop, number = torch.zeros(count, dtype=torch.long), lengths.clone(), count, 0
    while stop:
        start = int(begin[stop])
        members = torch.tensor(order[start:stop])
        stem[members] = number
        if stop - start > 1:
            cut[members] = int(alike[start : stop - 1].min())
        stop, number = start, number + 1
    return stem, cut
