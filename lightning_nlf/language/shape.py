"""Shape of a decoder: vocabulary, layers, heads, width, context, and which family of models it is like."""

# Without `from __future__ import annotations`: `lightning_nlf.networks` lends the class its name, and a yaml's values
# are checked by types that could not be looked up there.
import math
from dataclasses import dataclass
from typing import Literal

from lightning_nlf.numbers import Count, NonNegative, Positive, Size

Family = Literal["gpt2", "llama", "qwen2", "qwen3"]


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


def kept_per_layer(width: int, hidden: int, attended: int, checkpoint_activations: bool) -> int:
    """Numbers that a layer keeps of a token: the residual stream and its norm, twice; attention; and the MLP.

    Args: hidden: of the MLP; attended: queries, keys, values and the outcome together.
    """
    return 2 * width if checkpoint_activations else 4 * width + attended + 4 * hidden
