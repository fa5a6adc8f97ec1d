"""One compact decoder in the shapes of GPT-2, Llama, Qwen2 and Qwen3."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nlf import kernels
from lightning_nlf.numbers import Count, NonNegative, Positive, Size

Norm = nn.LayerNorm | nn.RMSNorm
Family = Literal["gpt2", "llama", "qwen2", "qwen3"]
# What the tokens attend to: the layer, and its queries, keys and values (N, heads + 2 · kv_heads, e) → (N, heads · e).
Attend = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class DecoderShape:
    """How a decoder is built.

    Args:
        vocabulary: token ids.
        context: tokens that a row may have, prompt and reply together.
        family: gpt2 has learned positions, LayerNorm, GELU and biases; llama rotary positions, RMSNorm, SwiGLU and no
            biases; qwen2 is llama with biases on queries, keys and values; qwen3 is llama with normed queries and keys.
        kv_heads: heads of keys and values; 0 is as many as `heads`.
        head_width: 0 is width / heads.
        hidden: width of the MLP; 0 is 4 · width, and with SwiGLU ⅔ of that, rounded up to a multiple of 32.
        tied: the head that predicts tokens shares its weights with their embedding.
        rope_theta: base of the rotary frequencies.
        eps: of the norms.
        init_std: of the weights that nobody has trained yet. Narrow networks learn to copy sooner from more, 1/√width.

    Raises:
        ValueError: sizes that do not go together.
    """

    vocabulary: Size
    layers: Size = 4
    heads: Size = 4
    width: Size = 128
    context: Size = 256
    family: Family = "gpt2"
    kv_heads: Count = 0
    head_width: Count = 0
    hidden: Count = 0
    tied: bool = True
    rope_theta: Positive = 10000.0
    eps: NonNegative = 1e-5
    init_std: Positive = 0.02

    def __post_init__(self) -> None:
        gated = self.family != "gpt2"
        for name, value in (
            ("kv_heads", self.heads),
            ("head_width", self.width // max(self.heads, 1)),
            ("hidden", math.ceil(8 * self.width / 3 / 32) * 32 if gated else 4 * self.width),
        ):
            object.__setattr__(self, name, getattr(self, name) or value)
        for name in ("vocabulary", "layers", "heads", "width", "context", "kv_heads", "head_width", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"shape.{name}: got {getattr(self, name)}, must be at least 1")
        if not self.init_std > 0:
            raise ValueError(f"shape.init_std: got {self.init_std}, must be above 0")
        if self.heads % self.kv_heads:
            raise ValueError(f"shape.kv_heads: {self.heads} heads cannot share {self.kv_heads} evenly")
        if not gated and (self.kv_heads != self.heads or self.head_width * self.heads != self.width):
            raise ValueError(
                f"shape: gpt2 has as many kv_heads as heads, and each is width / heads wide; got {self.kv_heads} for "
                f"{self.heads} heads of {self.head_width} in {self.width}"
            )
        if gated and self.head_width % 2:
            raise ValueError(f"shape.head_width: rotary positions need an even one, got {self.head_width}")


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
        self,
        x: Tensor,
        normed: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        attend: Callable[[Tensor], Tensor],
        wanted: Tensor | None = None,
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

    def positioned(self, qkv: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
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
    """Tokens → hidden states behind the last norm. Which tokens see which is the caller's business (`attend`)."""

    inverse_frequencies: Tensor

    def __init__(self, shape: DecoderShape, dropout: float = 0.0) -> None:
        super().__init__()
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
        for layer, block in enumerate(blocks):
            # behind the last attention only the wanted tokens go on
            x, y = block(x, normed, rotation, lambda qkv, at=layer: attend(at, qkv), wanted if layer == last else None)
            if layer < last:
                x, normed = added(x, y, blocks[layer + 1].attention_norm)
        return added(x, y.to(x.dtype) if exact else y, self.norm)[1]

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of each position's angles, (N, 1, e)."""
        angles = positions[:, None].float() * self.inverse_frequencies
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos(), angles.sin()
