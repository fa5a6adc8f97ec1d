"""Shape of a decoder: architecture family, vocabulary, context, layers, heads and widths."""

# No `from __future__ import annotations` here: `lightning_nlf.networks` re-exports the class under its own name, where
# type strings of a yaml's values could not be resolved.
import math
from dataclasses import dataclass
from typing import Literal

from lightning_nlf.numbers import Count, NonNegative, Positive, Size

Family = Literal["gpt2", "llama", "qwen2", "qwen3"]


@dataclass(frozen=True)
class DecoderShape:
    """Shape of a decoder.

    Args:
        vocabulary: number of token ids; 0 means the size in the run's data.
        context: maximum number of tokens in a row, including prompt and reply; 0 means the `context` of the data, or
            256.
        family: architecture. `gpt2` has learned positions, LayerNorm, GELU and biases. `llama` has rotary positions,
            RMSNorm, SwiGLU and no biases. `qwen2` is `llama` with biases for queries, keys and values. `qwen3` is
            `llama` with normed queries and keys.
        kv_heads: number of key-value heads; 0 means as many as `heads`.
        head_width: width of each attention head; 0 means width / heads.
        hidden: width of the MLP; 0 means 4 · width. With SwiGLU, 0 means ⅔ of 4 · width, rounded up to a multiple of
            32.
        tied: whether the output layer shares its weights with the embedding.
        rope_theta: base of the rotary frequencies.
        eps: epsilon of the norms.
        init_std: standard deviation of the initial weights. Narrow networks learn to copy tokens sooner with 1/√width.

    Raises:
        ValueError: the sizes are inconsistent.
    """

    vocabulary: Count = 0
    layers: Size = 4
    heads: Size = 4
    width: Size = 128
    context: Count = 0
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
            ("context", 256),
            ("hidden", math.ceil(8 * self.width / 3 / 32) * 32 if gated else 4 * self.width),
        ):
            object.__setattr__(self, name, getattr(self, name) or value)
        if not self.vocabulary:
            raise ValueError("shape.vocabulary: the data does not give it; set it to a whole number of at least 1")
        for name in ("vocabulary", "layers", "heads", "width", "context", "kv_heads", "head_width", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"shape.{name}: got {getattr(self, name)}, must be at least 1")
        if not self.init_std > 0:
            raise ValueError(f"shape.init_std: got {self.init_std}, must be above 0")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"shape.kv_heads: got {self.kv_heads}, but it must divide the number of heads, {self.heads}"
            )
        if not gated and (self.kv_heads != self.heads or self.head_width * self.heads != self.width):
            raise ValueError(
                f"shape: gpt2 needs kv_heads = heads and head_width = width / heads; got kv_heads {self.kv_heads}, "
                f"heads {self.heads}, head_width {self.head_width}, width {self.width}"
            )
        if gated and self.head_width % 2:
            raise ValueError(f"shape.head_width: got {self.head_width}, but rotary positions need an even number")


def kept_per_layer(width: int, hidden: int, attended: int, checkpoint_activations: bool) -> int:
    """Numbers per token that a layer keeps for the backward pass: residual stream and norm (twice), attention, and MLP.

    Args: hidden: width of the MLP; attended: widths of queries, keys, values and output together.
    """
    return 2 * width if checkpoint_activations else 4 * width + attended + 4 * hidden
