"""Transformer decoder for the architectures of GPT-2, Llama, Qwen2 and Qwen3."""

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
Rotation = tuple[Tensor, Tensor] | None  # cos and sin of the angles of each position, (N, 1, e)
# Attention of one layer: (its index, queries with keys and values (N, heads + 2 · kv_heads, e)) → (N, heads · e).
Attend = Callable[[int, Tensor], Tensor]


class Block(nn.Module):
    """Transformer block: attention and MLP, each after a norm and added to the residual stream."""

    def __init__(self, shape: DecoderShape, dropout: float) -> None:
        super().__init__()
        gpt2, qwen3 = shape.family == "gpt2", shape.family == "qwen3"
        self.heads, self.kv_heads, self.head_width = shape.heads, shape.kv_heads, shape.head_width
        query_width, key_value_width = shape.heads * shape.head_width, 2 * shape.kv_heads * shape.head_width
        self.attention_norm = norm(shape)
        self.qkv = nn.Linear(shape.width, query_width + key_value_width, bias=shape.family in ("gpt2", "qwen2"))
        self.query_norm = nn.RMSNorm(shape.head_width, shape.eps) if qwen3 else None
        self.key_norm = nn.RMSNorm(shape.head_width, shape.eps) if qwen3 else None
        self.out = nn.Linear(query_width, shape.width, bias=gpt2)
        self.mlp_norm = norm(shape)
        self.gated = not gpt2  # gate and up are one product
        self.up = nn.Linear(shape.width, shape.hidden * (1 + self.gated), bias=gpt2)
        self.down = nn.Linear(shape.hidden, shape.width, bias=gpt2)
        self.dropout = dropout

    def forward(
        self, x: Tensor, normed: Tensor, rotation: Rotation, attend: Callable[[Tensor], Tensor], outputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute one block.

        The residual stream x and `normed`, x after `attention_norm` (N, d) → x and the MLP's output (N, d).

        Args: outputs: (n,) tokens to compute after the attention. Both results are then (n, d).
        """
        qkv = self.qkv(normed).unflatten(-1, (-1, self.head_width))
        attended = attend(self.positioned(qkv, rotation))
        if outputs is not None:
            x, attended = x.index_select(0, outputs), attended.index_select(0, outputs)
        x, normed = added(x, self.dropped(self.out(attended)), self.mlp_norm)
        return x, self.dropped(self.mlp(normed))

    def positioned(self, qkv: Tensor, rotation: Rotation) -> Tensor:
        """Rotary position embedding of queries and keys (N, …, e), https://arxiv.org/abs/2104.09864.

        Values are unchanged.
        """
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


def added(x: Tensor, y: Tensor, next_norm: Norm) -> tuple[Tensor, Tensor]:
    """x + y, and the norm of this sum, both (N, d).

    With a kernel, the norm has the dtype of y. Otherwise, the norm has the dtype of x.
    """
    if x.dtype == next_norm.weight.dtype == torch.float32 and kernels.fit(y):
        bias = next_norm.bias if isinstance(next_norm, nn.LayerNorm) else None
        assert next_norm.eps is not None
        return kernels.add_norm(
            x, y, next_norm.weight, bias, next_norm.eps, centred=isinstance(next_norm, nn.LayerNorm)
        )
    x = x + y
    return x, next_norm(x)


class Decoder(nn.Module):
    """Decoder: tokens → hidden states after the last norm.

    The caller's `attend` decides which tokens a token attends to.

    Args: checkpoint_activations: keep only the input of each block, and recompute the block in the backward pass.
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
        """Approximate count of numbers per token that a forward pass keeps for the backward pass."""
        shape = self.shape
        attended = 2 * (shape.heads + shape.kv_heads) * shape.head_width
        return shape.layers * kept_per_layer(shape.width, shape.hidden, attended, self._recomputes)

    def initialise(self) -> None:
        """Normal initialisation.

        Weights that add to the residual stream are scaled by 1/√(2 · layers) (GPT-2, §2.3).
        """
        std = self.shape.init_std
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                adds = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=std / math.sqrt(2 * self.shape.layers) if adds else std)

    def forward(
        self, ids: Tensor, positions: Tensor, attend: Attend, outputs: Tensor | None = None, exact: bool = True
    ) -> Tensor:
        """ids, positions (N,) → hidden states (N, d), or (n, d) at the tokens `outputs` (n,).

        Args: exact: return float32 under autocast too; otherwise the result may be rounded to save time.
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
            # After the last attention, only the requested tokens are computed.
            arguments = (x, normed, rotation, lambda qkv, at=layer: attend(at, qkv), outputs if layer == last else None)
            x, y = checkpoint(block, *arguments, use_reentrant=False) if again else block(*arguments)
            if layer < last:
                x, normed = added(x, y, blocks[layer + 1].attention_norm)
        return added(x, y.to(x.dtype) if exact else y, self.norm)[1]

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the angles of each position, (N, 1, e)."""
        angles = positions[:, None].float() * self.inverse_frequencies
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos(), angles.sin()
