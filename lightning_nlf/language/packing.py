"""Sequence packing with shared prefixes: which tokens of a batch are computed, and each only once."""

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
    spans: Tensor  # (rows, 2) each row's first token, of all, and how many it has

    def spread(self, x: Tensor) -> Tensor:
        """The flat (N, …) as (rows, width, …); padding holds something."""
        own = x[self.first : self.first + self.count]
        own = own if self.tokens is None else own.index_select(0, self.tokens)
        return own.view(self.rows, self.width, *x.shape[1:])

    def collect(self, x: Tensor) -> Tensor:
        """(rows, width, …) as flat (count, …)."""
        x = x.flatten(0, 1)
        return x if self.slots is None else x.index_select(0, self.slots)


@dataclass(frozen=True)
class Packing:
    """The N tokens to compute: stems, each the start of one or more rows, and the leaves that go on from a stem."""

    ids: Tensor  # (N,)
    positions: Tensor  # (N,)
    wanted: Tensor  # (n,) the tokens that were asked for, in the order of the rows
    stems: Grid
    leaves: Grid | None = None
    stem: Tensor | None = None  # (leaves,) which one each leaf goes on from
    cut: Tensor | None = None  # (leaves,) how much of that each leaf sees

    def attend(self, layer: int, qkv: Tensor, heads: int) -> Tensor:
        """(N, heads + 2 · kv_heads, e) → (N, heads · e), alike in every layer."""
        if kernels.fit(qkv, qkv.shape[-1]):
            return kernels.attend_spans(qkv, self.spans, heads)
        queries, keys, values = split_heads(self.stems.spread(qkv), heads)
        out = self.stems.collect(attention(queries, keys, values))
        if self.leaves is None:
            return out
        assert self.stem is not None
        queries, own_keys, own_values = split_heads(self.leaves.spread(qkv), heads)
        seen = self.bias.shape[-1] - self.leaves.width  # of a stem
        keys = torch.cat([keys[:, :, :seen].index_select(0, self.stem), own_keys], 2)
        values = torch.cat([values[:, :, :seen].index_select(0, self.stem), own_values], 2)
        return torch.cat([out, self.leaves.collect(attention(queries, keys, values, self.bias))])

    @cached_property
    def spans(self) -> Tensor:
        """(stems + leaves, 4): the first token of each and how many, and of what it goes on from."""
        own = [self.stems.spans, *([] if self.leaves is None else [self.leaves.spans])]
        spans = F.pad(torch.cat(own), (0, 2))
        if self.stem is not None and self.cut is not None:
            spans[len(own[0]) :, 2], spans[len(own[0]) :, 3] = own[0][self.stem, 0], self.cut
        return spans

    @cached_property
    def bias(self) -> Tensor:
        """(leaves, 1, S, P + S): 0 where a leaf sees of its stem and of itself, else −∞."""
        assert self.leaves is not None and self.cut is not None
        longest, own, device = int(self.cut.max()), self.leaves.width, self.cut.device
        bias = torch.zeros(len(self.cut), 1, own, longest + own, device=device)
        unseen = torch.arange(longest, device=device) >= self.cut[:, None]
        bias[..., :longest].masked_fill_(unseen[:, None, None], -torch.inf)
        later = torch.ones(own, own, dtype=torch.bool, device=device).triu(1)
        bias[..., longest:].masked_fill_(later, -torch.inf)
        return bias

    def to(self, device: torch.device) -> Packing:
        return self if device.type == "cpu" else _moved(self, device)


def _moved(x: Any, device: torch.device) -> Any:
    """A tensor, or all tensors of a packing, on the device."""
    if isinstance(x, Grid | Packing):
        return type(x)(**{field.name: _moved(getattr(x, field.name), device) for field in fields(x)})
    return x.to(device, non_blocking=True) if isinstance(x, Tensor) else x


def pack(ids: Tensor, where: Tensor, share: bool = True) -> Packing:
    """What must be computed of ids (B, T), on the CPU, for the hidden states where `where` (B, T) is True.

    Tokens behind a row's last wanted one are padding: nobody sees them.
    Args: share: find the rows that begin alike.
    """
    steps = torch.arange(ids.shape[1])
    lengths = torch.where(where, steps + 1, 0).amax(1)  # (B,)
    stem, cut = _stems(ids, lengths) if share else (torch.arange(len(ids)), lengths)
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
    return replace(packed, leaves=leaves, stem=stem[own], cut=cut[own])


def _grid(start: Tensor, lengths: Tensor, first: int) -> tuple[Grid, tuple[Tensor, Tensor], Tensor]:
    """Rows of some lengths; the row and position of each token (2 · (n,)), and the flat place of each row's first."""
    width = int(lengths.amax()) if len(lengths) else 0
    there = torch.arange(width) < lengths[:, None]
    row, step = there.nonzero(as_tuple=True)
    offsets = lengths.cumsum(0) - lengths
    full = len(row) == there.numel()
    tokens = None if full else torch.where(there, offsets[:, None] + torch.arange(width), 0).flatten()
    slots = None if full else row * width + step
    offsets = first + offsets
    grid = Grid(first, len(lengths), width, slots, tokens, len(row), torch.stack([offsets, lengths], 1))
    return grid, (row, start[row] + step), offsets


def _stems(ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Which stem each row has, and how much of the row it is, both (B,), so that the fewest tokens are left.

    In alphabetical order such rows are next to each other, and the best cuts are found by dynamic programming.
    """
    count = len(ids)
    texts, sizes = ids.tolist(), lengths.tolist()
    order = sorted(range(count), key=lambda row: texts[row][: sizes[row]])
    ordered, ends = ids[order], lengths[order]
    alike = (ordered[1:] == ordered[:-1]).long().cumprod(1).sum(1)
    with_next = alike.minimum(ends[1:]).minimum(ends[:-1]).numpy()  # (B − 1,)
    saved = np.zeros(count + 1, dtype=np.int64)  # at most, in the first rows of the order
    begin = np.zeros(count + 1, dtype=np.int64)  # of the last stem's rows, for that
    for stop in range(1, count + 1):
        common = np.minimum.accumulate(with_next[: stop - 1][::-1])[::-1]  # of the rows from each one to `stop`
        gains = saved[: stop - 1] + common * np.arange(stop - 1, 0, -1)
        best = int(gains.argmax()) if stop > 1 else 0
        better = stop > 1 and gains[best] > saved[stop - 1]
        saved[stop], begin[stop] = (gains[best], best) if better else (saved[stop - 1], stop - 1)
    if saved[count] < WORTHWHILE * sum(sizes):
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
