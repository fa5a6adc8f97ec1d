"""Key-value cache of a transformers model, for rows that read different numbers of tokens at a time."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Memory:
    """Key-value cache with columns that all rows share. It stores which columns each row uses."""

    cache: Any  # cache of transformers; each layer has keys and values, each (B, heads, C, e)
    used: Tensor  # (B, C) 1 in the columns of a row's tokens, else 0
    lengths: Tensor  # (B,) number of tokens that each row has read: the position of its next token

    @classmethod
    def empty(cls, cache: Any, lengths: Tensor) -> Memory:
        """An empty cache for as many rows as `lengths` (B,) has."""
        return cls(cache, lengths.new_zeros(len(lengths), 0), torch.zeros_like(lengths))

    def closed(self, lengths: Tensor) -> Memory:
        """Remove gaps before the next read of `lengths` (B,) tokens, so that each row's tokens are in the last columns.

        Sliding windows, local attention and ALiBi count columns, so a row must not have gaps between its tokens. A row
        that reads nothing may keep a gap. Columns that no row uses are dropped.
        """
        if not self.used.shape[1] or not bool(((self.used[:, -1] == 0) & (lengths > 0)).any()):
            return self
        order = self.used.argsort(dim=1, stable=True)[:, self.used.shape[1] - int(self.lengths.max()) :]
        columns = order[:, None, :, None]
        cache = twin(self.cache)
        for layer in cache.layers:
            layer.keys = layer.keys.gather(2, columns.expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3]))
            layer.values = layer.values.gather(2, columns.expand(-1, layer.values.shape[1], -1, layer.values.shape[3]))
        return Memory(cache, self.used.gather(1, order), self.lengths)

    def rows_of(self, index: Tensor) -> Memory:
        cache = twin(self.cache)
        cache.batch_select_indices(index)
        return Memory(cache, self.used[index], self.lengths[index])

    def with_rows(self, index: Tensor, part: Memory) -> Memory:
        """Return the cache with `part` in the rows `index` (N,)."""
        columns, cache = max(self.used.shape[1], part.used.shape[1]), twin(self.cache)
        for layer, part_layer in zip(cache.layers, part.cache.layers, strict=True):
            layer.keys = widened(layer.keys, columns).index_copy(0, index, widened(part_layer.keys, columns))
            layer.values = widened(layer.values, columns).index_copy(0, index, widened(part_layer.values, columns))
        used = widened(self.used[..., None], columns).index_copy(0, index, widened(part.used[..., None], columns))
        return Memory(cache, used[..., 0], self.lengths.index_copy(0, index, part.lengths))


def twin(cache: Any) -> Any:
    """A copy of the cache that shares its tensors. The tensors may be replaced, but must not be written to."""
    clone = copy.copy(cache)
    clone.layers = [copy.copy(layer) for layer in cache.layers]
    return clone


def widened(x: Tensor, columns: int) -> Tensor:
    """Pad with zeros on the left: (…, C, e) → (…, columns, e)."""
    return F.pad(x, (0, 0, columns - x.shape[-2], 0))
