"""Low-rank additions (LoRA) to the linear layers of our decoder: trained beside frozen weights, merged for sampling.

https://arxiv.org/abs/2106.09685. Layers have the names of Hugging Face's layout, of which some are one product here:
`q_proj`, `k_proj` and `v_proj` are rows of `qkv`, and each may have an addition or none.
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

ADDITION = "lora_"  # in the names of all that LoRA adds, here and in peft
DEFAULTS = {"gpt2": ["c_attn"]}  # those of peft; of the other families:
DEFAULT = ["q_proj", "v_proj"]


class LinearWithAdditions(nn.Linear):
    """y = x Wᵀ + b, and (alpha / r) x Aᵀ Bᵀ more in the rows of each part that has an addition; 0 at first.

    Args:
        linear: whose weight and bias it takes over, frozen.
        rows: how many of W's rows each part has, by name, from above.
        targets: the parts with an addition.
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
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))  # as peft
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
        """W with the additions in it; on a GPU always at the same address, where graphs look for it."""
        kept = self._merged
        if kept is None or kept.device != self.weight.device:
            kept = torch.empty_like(self.weight)
        kept.copy_(self.weight)
        for name, part in zip(self.rows, kept.split(list(self.rows.values())), strict=True):
            if name in self.lora_A:
                part.addmm_(self.lora_B[name], self.lora_A[name], alpha=self.scale)
        self._merged = kept if kept.is_cuda else None
        return kept


def add_lora(decoder: Decoder, r: int, alpha: int, targets: Sequence[str] | None) -> list[str]:
    """Give layers of the decoder additions, and freeze all else in it. Returns the targets.

    Args:
        targets: names of layers as in Hugging Face's layout, such as `q_proj`; each is the end of a layer's name. By
            default those that peft has for the architecture.

    Raises:
        ValueError: a target that is the name of no layer.
    """
    chosen = list(DEFAULTS.get(decoder.shape.family, DEFAULT) if targets is None else targets)
    decoder.requires_grad_(False)
    layers = list(_linear_layers(decoder))
    names = [name for _, _, rows in layers for name in rows]
    for target in chosen:
        if not any(_ends_with(name, target) for name in names):
            choices = ", ".join(sorted({name.split(".")[-1] for name in names}))
            raise ValueError(f"lora: target_modules: {target} is not a layer of this decoder: choose from {choices}")
    for block, part, rows in layers:
        own = [name for name in rows if any(_ends_with(name, target) for target in chosen)]
        if own:
            short = {name.split(".")[-1]: height for name, height in rows.items()}
            wide = LinearWithAdditions(getattr(block, part), short, [name.split(".")[-1] for name in own], r, alpha)
            setattr(block, part, wide)
    return chosen


def _linear_layers(decoder: Decoder) -> Iterator[tuple[nn.Module, str, dict[str, int]]]:
    """Each block, the name of a linear layer in it, and its rows by their names in Hugging Face's layout."""
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
    """Inside, the decoder is what it was before anything was added."""
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
    """Inside, the additions are in the weights, so that a token costs no more than without; then W is what it was.

    W stands aside meanwhile, in memory of its own: what is added and subtracted again is not the same to the bit.
    """
    layers = [layer for layer in layers_with_additions(decoder) if layer.adds]
    aside = [layer.weight.data for layer in layers]
    try:
        for layer in layers:
            # a tensor that validation and collection may both write to
            with torch.inference_mode(False), torch.no_grad():
                layer.weight.data = layer.merged_weight()
            layer.adds = False
        yield
    finally:
        for layer, weight in zip(layers, aside, strict=True):
            layer.weight.data, layer.adds = weight, True


def adapter_of(decoder: Decoder) -> dict[str, Tensor]:
    """The additions by their names in a file of peft, float32."""
    tensors = {}
    for block, part, rows in _linear_layers(decoder):
        layer = getattr(block, part)
        for name in rows if isinstance(layer, LinearWithAdditions) else ():
            short, theirs = name.split(".")[-1], f"base_model.model.{hf_layout.body(decoder.shape)}{name}"
            if short in layer.lora_A:
                tensors[f"{theirs}.lora_A.weight"] = layer.lora_A[short].detach().float().cpu().contiguous()
                tensors[f"{theirs}.lora_B.weight"] = layer.lora_B[short].detach().float().cpu().contiguous()
    return tensors
