"""Transformer decoder in the shapes of GPT-2, Llama, Qwen2 and Qwen3."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_nlf.language import kernels
from lightning_nlf.language.shape import DecoderShape, kept_per_layer

Norm = nn.LayerNorm | nn.RMSNorm
Rotation = tuple[Tensor, Tensor] | None  # cos and sin of each position's angles, (N, 1, e)
# What the tokens attend to: the layer, and its queries, keys and values (N, heads + 2 · kv_heads, e) → (N, heads · e).
Attend = Callable[[int, Tensor], Tensor]


class Block(nn.Module):
    """Attention and MLP, each behind its norm and beside the residual stream."""

    def __init__(self, shape: DecoderShape, dropout: float) -> None:
        super().__init__()
        gpt2, qwen3 = shape.family == "gpt2", shape.family == "qwen3"
        self.heads, self.kv_heads, self.head_width = shape.heads, shape.kv_heads, shape.head_width
        queried, kept = shape.heads * shape.head_width, 2 * shape.kv_heads * shape.head_width
        self.attention_norm = norm(shape)
        self.qkv = nn.Linear(shape.width, queried + kept, bias=shape.family in ("gpt2", "qwen2"))
        self.query_norm = nn.RMSNorm(shape.head_width, shape.eps) if qwen3 else None
        self.key_norm = nn.RMSNorm(shape.head_width, shape.eps) if qwen3 else None
        self.out = nn.Linear(queried, shape.width, bias=gpt2)
        self.mlp_norm = norm(shape)
        self.gated = not gpt2  # gate and up in one product
        self.up = nn.Linear(shape.width, shape.hidden * (1 + self.gated), bias=gpt2)
        self.down = nn.Linear(shape.hidden, shape.width, bias=gpt2)
        self.dropout = dropout

    def forward(
        self, x: Tensor, normed: Tensor, rotation: Rotation, attend: Callable[[Tensor], Tensor], wanted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream (N, d), also behind `attention_norm` → it and what is added to it, both (N, d).

        Args: wanted: (n,) tokens to go on with; both are (n, d) then.
        """
        qkv = self.qkv(normed).unflatten(-1, (-1, self.head_width))
        attended = attend(self.positioned(qkv, rotation))
        if wanted is not None:
            x, attended = x.index_select(0, wanted), attended.index_select(0, wanted)
        x, normed = added(x, self.dropped(self.out(attended)), self.mlp_norm)
        return x, self.dropped(self.mlp(normed))

    def positioned(self, qkv: Tensor, rotation: Rotation) -> Tensor:
        """Queries and keys (N, …, e) turned by their positions, https://arxiv.org/abs/2104.09864; values stay."""
        if rotation is None:
            return qkv
        queries, keys, values = qkv.split([self.heads, self.kv_heads, self.kv_heads], 1)
        if self.query_norm is not None and self.key_norm is not None:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        cos, sin = rotation
        x = torch.cat([queries, keys], 1)
        halves = x.chunk(2, -1)
        x = x * cos + torch.cat([-halves[1], halves[0]], -1) * sin
        return torch.cat([x.to(values.dtype), values], 1)

    def mlp(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, up = self.up(x).chunk(2, -1)
            return self.down(F.silu(gate) * up)
        up = self.up(x)
        return self.down(kernels.gelu(up) if kernels.fit(up) else F.gelu(up, approximate="tanh"))

    def dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def norm(shape: DecoderShape) -> Norm:
    return (nn.LayerNorm if shape.family == "gpt2" else nn.RMSNorm)(shape.width, shape.eps)


def added(x: Tensor, y: Tensor, behind: Norm) -> tuple[Tensor, Tensor]:
    """x + y, and that behind the norm, all (N, d). By a kernel, the latter has y's dtype, otherwise x's."""
    if x.dtype == behind.weight.dtype == torch.float32 and kernels.fit(y):
        bias = behind.bias if isinstance(behind, nn.LayerNorm) else None
        assert behind.eps is not None
        return kernels.add_norm(x, y, behind.weight, bias, behind.eps, centred=isinstance(behind, nn.LayerNorm))
    x = x + y
    return x, behind(x)


class Decoder(nn.Module):
    """Tokens → hidden states behind the last norm. Which tokens see which is the caller's business (`attend`).

    Args: checkpoint_activations: keep of each block its input alone, and compute it again on the way back.
    """

    inverse_frequencies: Tensor

    def __init__(self, shape: DecoderShape, dropout: float = 0.0, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self._recomputes = checkpoint_activations
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: got {dropout}, must be at least 0 and below 1")
        self.shape, self.dropout = shape, dropout
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.context, shape.width) if shape.family == "gpt2" else None
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.norm = norm(shape)
        steps = torch.arange(0, shape.head_width, 2, dtype=torch.float32) / shape.head_width
        self.register_buffer("inverse_frequencies", shape.rope_theta**-steps, persistent=False)
        self.initialise()

    @property
    def kept_per_token(self) -> int:
        """Numbers that a forward pass keeps of a token for the way back, about."""
        shape = self.shape
        attended = 2 * (shape.heads + shape.kv_heads) * shape.head_width
        return shape.layers * kept_per_layer(shape.width, shape.hidden, attended, self._recomputes)

    def initialise(self) -> None:
        """Normal; what adds to the residual stream by 1/√(2 · layers) less (Radford et al. 2019, §2.3)."""
        std = self.shape.init_std
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                adds = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=std / math.sqrt(2 * self.shape.layers) if adds else std)

    def forward(
        self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None, exact: bool = True
    ) -> Tensor:
        """ids, positions (N,) → hidden states (N, d), or (n, d) of the tokens `wanted` (n,).

        Args: exact: float32 in bf16 too; otherwise rounded, where that saves time.
        """
        x = F.embedding(ids, self.embed.weight)
        if self.places is not None:
            x = x + F.embedding(positions, self.places.weight)
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        rotation = None if self.places is not None else self.rotation(positions)
        blocks = cast("list[Block]", list(self.blocks))
        normed, last = blocks[0].attention_norm(x), len(blocks) - 1
        again = self._recomputes and self.training and torch.is_grad_enabled()
        for layer, block in enumerate(blocks):
            # behind the last attention only the wanted tokens go on
            given = (x, normed, rotation, lambda qkv, at=layer: attend(at, qkv), wanted if layer == last else None)
            x, y = checkpoint(block, *given, use_reentrant=False) if again else block(*given)
            if layer < last:
                x, normed = added(x, y, blocks[layer + 1].attention_norm)
        return added(x, y.to(x.dtype) if exact else y, self.norm)[1]

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of each position's angles, (N, 1, e)."""
        angles = positions[:, None].float() * self.inverse_frequencies
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos(), angles.sin()
