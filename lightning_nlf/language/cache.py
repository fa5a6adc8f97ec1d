"""Key-value cache of a decoder, so that only new tokens have to be computed."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nlf.language import kernels
from lightning_nlf.language.attention import attention


class Cache:
    """Key-value cache with columns that all rows share. Each read writes the next columns.

    Args:
        store: (layers, B, 2 · kv_heads, C, e), the keys and then the values of each layer.
        bias: (B, C), attention bias: 0 in the columns of a row's tokens, else −∞.
        lengths: (B,), number of tokens that each row has read. This is also the position of the row's next token.
        used: number of columns written so far.
        longest: an upper bound of `lengths`.
    """

    def __init__(self, store: Tensor, bias: Tensor, lengths: Tensor, used: int, longest: int) -> None:
        self.store, self.bias, self.lengths, self.used, self.longest = store, bias, lengths, used, longest
        self._layers = store.unbind(0)

    def reserve(self, columns: int) -> None:
        """Make room for this total number of columns."""
        if columns > self.store.shape[3]:
            self.store, self.bias = self._with_columns(self.store, columns), self._with_columns(self.bias, columns)
            self._layers = self.store.unbind(0)

    def _with_columns(self, x: Tensor, columns: int, rows: Tensor | None = None) -> Tensor:
        """Copy the used columns of the store or the bias into a wider tensor, for the given rows (None: all rows)."""
        old = x.narrow(-2 if x.ndim > 2 else -1, 0, self.used)
        old = old if rows is None else old.index_select(1 if x.ndim > 2 else 0, rows)
        if x.ndim > 2:
            new = x.new_empty(*old.shape[:3], columns, x.shape[4])
            new[:, :, :, : self.used] = old
        else:
            new = x.new_full((len(old), columns), -torch.inf)
            new[:, : self.used] = old
        return new

    def add(self, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Reserve the next `width` columns for new tokens. `lengths` (B,) is the number of new tokens in each row.

        Returns the positions (B, width) and the attention bias (B, 1, width, used) of the new tokens. The bias is 0 or
        −∞.
        """
        self.reserve(self.used + width)
        if width == 1:
            positions = self.lengths[:, None]
            self.bias[:, self.used] = torch.where(lengths > 0, 0.0, -torch.inf)
            bias = self.bias[:, None, None, : self.used + 1]
        else:
            steps = torch.arange(width, device=lengths.device)
            positions = self.lengths[:, None] + steps
            causal = self.bias.new_zeros(width, width).masked_fill(steps[:, None] < steps, -torch.inf)
            bias = torch.cat(
                [self.bias[:, None, : self.used].expand(-1, width, -1), causal.expand(len(lengths), -1, -1)], 2
            )[:, None]
            self.bias[:, self.used : self.used + width] = torch.where(steps < lengths[:, None], 0.0, -torch.inf)
        self.used += width
        self.longest += width
        self.lengths = self.lengths + lengths
        return positions, bias

    def attend(self, layer: int, qkv: Tensor, heads: int, bias: Tensor, first: int = 0) -> Tensor:
        """Attention for new tokens: (b · L, heads + 2 · kv_heads, e) → (b · L, heads · e). Stores keys and values.

        Args: bias: attention bias from `add`, for the b rows from `first` on.
        """
        rows, _, width, _ = bias.shape
        columns = self._layers[layer].narrow(0, first, rows)
        if width == 1 and kernels.fit(qkv, qkv.shape[-1]):
            return kernels.attend_step(qkv, columns, self.used, self.bias[first : first + rows])
        queries, new = qkv.unflatten(0, (rows, width)).transpose(1, 2).split([heads, qkv.shape[1] - heads], 1)
        columns.narrow(2, self.used - width, width).copy_(new)
        if self.used == width:  # in the first read, no token attends to the padding, which is on the right
            keys, values = new.chunk(2, 1)
            return attention(queries, keys, values).flatten(0, 1)
        keys, values = columns.narrow(2, 0, self.used).chunk(2, 1)
        return attention(queries, keys, values, bias).flatten(0, 1)

    def rows_of(self, index: Tensor) -> Cache:
        columns = self.store.shape[3]
        return Cache(
            self._with_columns(self.store, columns, index),
            self._with_columns(self.bias, columns, index),
            self.lengths[index],
            self.used,
            self.longest,
        )

    def with_rows(self, index: Tensor, part: Cache) -> Cache:
        """Return the cache with `part` in the rows `index`. `part` has read more tokens."""
        self.reserve(part.store.shape[3])
        self.store[:, :, :, self.used : part.used].zero_()  # masked for rows not in `part`, but 0 · NaN is NaN
        self.store[:, index, :, : part.used] = part.store[:, :, :, : part.used]
        self.bias[index, : part.used] = part.bias[:, : part.used]
        lengths = self.lengths.index_copy(0, index, part.lengths)
        return Cache(self.store, self.bias, lengths, part.used, max(self.longest, part.longest))
