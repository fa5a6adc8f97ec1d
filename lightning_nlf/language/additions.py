"""LoRA for our decoder: low-rank additions to linear layers, trained with frozen weights and merged for sampling.

Source: https://arxiv.org/abs/2106.09685. Layers have the names of the Hugging Face layout. Our decoder joins some of
these layers: `q_proj`, `k_proj` and `v_proj` are rows of `qkv`. Each joined layer may have its own addition, or none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nlf.language import hf_layout
from lightning_nlf.language.decoder import Decoder

ADDITION = "lora_"  # part of the names of all LoRA parameters, here and in peft
DEFAULTS = {"gpt2": ["c_attn"]}  # peft's default targets; all other families:
DEFAULT = ["q_proj", "v_proj"]


class LinearWithAdditions(nn.Linear):
    """Linear layer with LoRA: y = x Wᵀ + b, plus (alpha / r) x Aᵀ Bᵀ in the rows of each target. Additions start at 0.

    Args:
        linear: the layer whose weight and bias are used and frozen.
        rows: number of rows of W for each part, by the part's name, from top to bottom.
        targets: names of the parts with an addition.
    """

    def __init__(self, linear: nn.Linear, rows: dict[str, int], targets: Sequence[str], r: int, alpha: int) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.requires_grad_(False)
        self.rows, self.scale, self.adds = rows, alpha / r, True
        like = self.weight.detach()
        self.lora_A = nn.ParameterDict({name: like.new_empty(r, linear.in_features) for name in targets})
        self.lora_B = nn.ParameterDict({name: like.new_zeros(rows[name], r) for name in targets})
        for matrix in self.lora_A.values():
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))  # as in peft
        self._merged: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.adds:
            return y
        parts = dict(zip(self.rows, y.split(list(self.rows.values()), -1), strict=True))
        for name in self.lora_A:
            parts[name] = parts[name] + self.scale * F.linear(F.linear(x, self.lora_A[name]), self.lora_B[name])
        return torch.cat(list(parts.values()), -1)

    def merged_weight(self) -> Tensor:
        """W with its additions.

        On a GPU, the address of the result is constant, because CUDA graphs read from this address.
        """
        merged = self._merged
        if merged is None or merged.device != self.weight.device:
            merged = torch.empty_like(self.weight)
        merged.copy_(self.weight)
        for name, part in zip(self.rows, merged.split(list(self.rows.values())), strict=True):
            if name in self.lora_A:
                part.addmm_(self.lora_B[name], self.lora_A[name], alpha=self.scale)
        self._merged = merged if merged.is_cuda else None
        return merged


def add_lora(decoder: Decoder, r: int, alpha: int, targets: Sequence[str] | None) -> list[str]:
    """Add LoRA to layers of the decoder, and freeze all other parameters. Returns the targets.

    Args:
        targets: names of layers in the Hugging Face layout, such as `q_proj`. A layer matches if its name ends with a
            target. By default peft's choice for the architecture.

    Raises:
        ValueError: a target matches no layer.
    """
    chosen = list(DEFAULTS.get(decoder.shape.family, DEFAULT) if targets is None else targets)
    decoder.requires_grad_(False)
    layers = list(_linear_layers(decoder))
    names = [name for _, _, rows in layers for name in rows]
    for target in chosen:
        if not any(_ends_with(name, target) for name in names):
            choices = ", ".join(sorted({name.split(".")[-1] for name in names}))
            raise ValueError(f"lora: target_modules: {target} is not a layer of this decoder; choose from {choices}")
    for block, part, rows in layers:
        adapted = [name for name in rows if any(_ends_with(name, target) for target in chosen)]
        if adapted:
            short = {name.split(".")[-1]: height for name, height in rows.items()}
            wide = LinearWithAdditions(getattr(block, part), short, [name.split(".")[-1] for name in adapted], r, alpha)
            setattr(block, part, wide)
    return chosen


def _linear_layers(decoder: Decoder) -> Iterator[tuple[nn.Module, str, dict[str, int]]]:
    """Each linear layer: its block, its name in the block, and its numbers of rows by Hugging Face name."""
    for layer, block in enumerate(decoder.blocks):
        for part, linear in block.named_children():
            if isinstance(linear, nn.Linear):
                names = hf_layout.layer_names(decoder.shape, layer, part)
                heights = hf_layout.heights(decoder.shape, part, linear.out_features)
                yield block, part, dict(zip(names, heights, strict=True))


def _ends_with(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def layers_with_additions(decoder: nn.Module) -> list[LinearWithAdditions]:
    return [module for module in decoder.modules() if isinstance(module, LinearWithAdditions)]


@contextmanager
def without_additions(decoder: nn.Module) -> Iterator[None]:
    """Context manager without additions: the decoder computes only with its frozen weights."""
    layers = [layer for layer in layers_with_additions(decoder) if layer.adds]
    for layer in layers:
        layer.adds = False
    try:
        yield
    finally:
        for layer in layers:
            layer.adds = True


@contextmanager
def merged_additions(decoder: nn.Module) -> Iterator[None]:
    """Context manager with merged additions: sampling costs no more than without LoRA. W is restored on exit.

    A copy of W is kept, because adding and then subtracting the additions would change W by rounding.
    """
    layers = [layer for layer in layers_with_additions(decoder) if layer.adds]
    aside = [layer.weight.data for layer in layers]
    try:
        for layer in layers:
            # a normal tensor, because both validation and collection write to it
            with torch.inference_mode(False), torch.no_grad():
                layer.weight.data = layer.merged_weight()
            layer.adds = False
        yield
    finally:
        for layer, weight in zip(layers, aside, strict=True):
            layer.weight.data, layer.adds = weight, True


def adapter_of(decoder: Decoder) -> dict[str, Tensor]:
    """The LoRA parameters in float32, by the names that they have in a peft file."""
    tensors = {}
    for block, part, rows in _linear_layers(decoder):
        layer = getattr(block, part)
        for name in rows if isinstance(layer, LinearWithAdditions) else ():
            short, theirs = name.split(".")[-1], f"base_model.model.{hf_layout.body(decoder.shape)}{name}"
            if short in layer.lora_A:
                tensors[f"{theirs}.lora_A.weight"] = layer.lora_A[short].detach().float().cpu().contiguous()
                tensors[f"{theirs}.lora_B.weight"] = layer.lora_B[short].detach().float().cpu().contiguous()
    return tensors
