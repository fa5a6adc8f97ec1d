"""Interface of a text policy that reads tokens turn by turn, for the token loop.

This file also has the implementation for our decoder.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nlf.language.additions import merged_additions
from lightning_nlf.language.cache import Cache
from lightning_nlf.language.decoder import Decoder
from lightning_nlf.language.head_distribution import LinearHead
from lightning_nlf.language.limits import refuse_length, refuse_strangers


class Reader(nn.Module):
    """Interface of a text policy for the token loop. The state may be a cache or a hidden state."""

    def read(self, ids: Tensor, lengths: Tensor, state: Any = None, room: int = 0) -> tuple[Tensor, Any]:
        """Read new ids (B, L), right-padded with lengths (B,) → the next token's logits (B, V), float, and the state.

        A row of length 0 keeps its state, and its logits have no meaning. Without a state, each length is ≥ 1. `read`
        consumes the state, so only the returned state can be used again.
        Args: room: number of tokens that will be read one by one after `ids`. A cache reserves space for these tokens.
        """
        raise NotImplementedError

    def merged(self) -> AbstractContextManager[None]:
        """Context manager for sampling, in which LoRA additions may be merged into the weights."""
        return nullcontext()

    def rows_of(self, state: Any, index: Tensor) -> Any:
        """The state of the rows `index` (N,), which may leave out or repeat rows."""
        return state.rows_of(index)

    def with_rows(self, state: Any, index: Tensor, part: Any) -> Any:
        """`state` with `part` as the state of the rows `index` (N,), which are distinct.

        `part` has read more tokens.
        """
        return state.with_rows(index, part)


class DecoderReader(Reader):
    """Text policy on a `Decoder` and its head, with keys and values in a `Cache`."""

    CHUNK = 1024  # prompt tokens that a CPU reads at a time; a larger number needs more memory, and is not faster
    decoder: Decoder
    lm_head: nn.Linear | None  # output layer; None if tied to the embedding
    temperature: float  # the scores are divided by it
    role: str

    def scores(self, features: Tensor) -> Tensor:
        """Scores (logits): (…, d) → (…, V), float32."""
        return self.head(features).float()

    @property
    def head(self) -> LinearHead:
        """The linear head. At temperature 1, its scores have the precision of the product."""
        return LinearHead((self.lm_head or self.decoder.embed).weight, temperature=self.temperature)

    def merged(self) -> AbstractContextManager[None]:
        return merged_additions(self.decoder)

    @torch.no_grad()
    def read(self, ids: Tensor, lengths: Tensor, state: Any = None, room: int = 0) -> tuple[Tensor, Cache]:
        shape, (rows, width), device = self.decoder.shape, ids.shape, ids.device
        cache = self._empty_cache(rows) if state is None else state
        if cache.longest + width + max(room - 1, 0) > shape.context:  # `longest` is only an upper bound
            cache.longest = int(cache.lengths.max())
            refuse_length(int((cache.lengths + lengths).max()), shape.context, self.role, max(room - 1, 0))
        if room or width > 1:  # a single sampled token is not checked again
            refuse_strangers(ids, shape.vocabulary)
        cache.reserve(cache.used + width + max(room - 1, 0))
        positions, bias = cache.add(lengths, width)
        last = torch.arange(0, rows * width, width, device=device) + (lengths - 1).clamp(min=0)
        positions = positions.clamp(max=shape.context - 1)  # positions of padding may exceed the context
        rows_at_a_time = max(1, self.CHUNK // width) if width > 1 and device.type == "cpu" else max(1, rows)
        scores = []
        for first in range(0, rows, rows_at_a_time):
            chunk = slice(first, first + rows_at_a_time)
            outputs = None if width == 1 else last[chunk] - first * width
            attend = partial(cache.attend, heads=shape.heads, bias=bias[chunk], first=first)
            hidden = self.decoder(ids[chunk].flatten(), positions[chunk].flatten(), attend, outputs, exact=False)
            scores.append(self.scores(hidden))
        return scores[0] if len(scores) == 1 else torch.cat(scores), cache

    def _empty_cache(self, rows: int) -> Cache:
        shape, weight = self.decoder.shape, self.decoder.embed.weight
        device = weight.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        store = weight.new_empty(shape.layers, rows, 2 * shape.kv_heads, 0, shape.head_width, dtype=half)
        bias = torch.empty(rows, 0, device=weight.device)
        return Cache(store, bias, torch.zeros(rows, dtype=torch.long, device=weight.device), used=0, longest=0)
