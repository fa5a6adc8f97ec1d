"""Read tokens turn by turn and keep the state: what the token loop asks of a policy, and that on our own decoder."""

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
    """What the token loop asks of a policy of text, whose state may be a cache or a hidden state."""

    def read(self, ids: Tensor, lengths: Tensor, state: Any = None, room: int = 0) -> tuple[Tensor, Any]:
        """Text: new ids (B, L), right-padded with lengths (B,) → the next token's logits (B, V), float, and the state.

        A row of length 0 has nothing new: its state stays, and its logits mean nothing. Without a state each length
        is ≥ 1. A state is used up by `read`: only what it returns goes on.
        Args: room: tokens that will be read one by one after these; a cache makes room for them.
        """
        raise NotImplementedError

    def merged(self) -> AbstractContextManager[None]:
        """Inside, tokens are sampled: what stands beside the weights (LoRA) may be added to them meanwhile."""
        return nullcontext()

    def rows_of(self, state: Any, index: Tensor) -> Any:
        """The state of the rows `index` (N,), which may leave some out and repeat others."""
        return state.rows_of(index)

    def with_rows(self, state: Any, index: Tensor, part: Any) -> Any:
        """`state` with `part` as the state of its rows `index` (N,), all different; `part` has read further."""
        return state.with_rows(index, part)


class DecoderReader(Reader):
    """The next token's scores by a `Decoder` and its head, with keys and values in a `Cache`."""

    CHUNK = 1024  # tokens of prompts that a CPU reads at a time: more take more memory, and no less time
    decoder: Decoder
    lm_head: nn.Linear | None  # that predicts tokens, where it is not the embedding
    temperature: float  # what scores are divided by
    role: str

    def scores(self, features: Tensor) -> Tensor:
        """(…, d) → (…, V), float32, not normalised."""
        return self.head(features).float()

    @property
    def head(self) -> LinearHead:
        """Scores in the precision of the product where nothing more is done to it."""
        return LinearHead((self.lm_head or self.decoder.embed).weight, temperature=self.temperature)

    def merged(self) -> AbstractContextManager[None]:
        return merged_additions(self.decoder)

    @torch.no_grad()
    def read(self, ids: Tensor, lengths: Tensor, state: Any = None, room: int = 0) -> tuple[Tensor, Cache]:
        shape, (rows, width), device = self.decoder.shape, ids.shape, ids.device
        cache = self._empty_cache(rows) if state is None else state
        if cache.longest + width + max(room - 1, 0) > shape.context:  # perhaps: `longest` is a bound
            cache.longest = int(cache.lengths.max())
            refuse_length(int((cache.lengths + lengths).max()), shape.context, self.role, max(room - 1, 0))
        if room or width > 1:  # not of every token that was sampled
            refuse_strangers(ids, shape.vocabulary)
        cache.reserve(cache.used + width + max(room - 1, 0))
        positions, seen = cache.add(lengths, width)
        last = torch.arange(0, rows * width, width, device=device) + (lengths - 1).clamp(min=0)
        positions = positions.clamp(max=shape.context - 1)  # of padding
        some = max(1, self.CHUNK // width) if width > 1 and device.type == "cpu" else max(1, rows)
        scores = []
        for first in range(0, rows, some):
            own = slice(first, first + some)
            wanted = None if width == 1 else last[own] - first * width
            attend = partial(cache.attend, heads=shape.heads, seen=seen[own], first=first)
            hidden = self.decoder(ids[own].flatten(), positions[own].flatten(), attend, wanted, exact=False)
            scores.append(self.scores(hidden))
        return scores[0] if len(scores) == 1 else torch.cat(scores), cache

    def _empty_cache(self, rows: int) -> Cache:
        shape, weight = self.decoder.shape, self.decoder.embed.weight
        device = weight.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        store = weight.new_empty(shape.layers, rows, 2 * shape.kv_heads, 0, shape.head_width, dtype=half)
        bias = torch.empty(rows, 0, device=weight.device)
        return Cache(store, bias, torch.zeros(rows, dtype=torch.long, device=weight.device), used=0, longest=0)
