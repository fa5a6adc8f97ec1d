"""LoRA adapters for low-rank fine-tuning. The base model serves as the reference policy, at no cost in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_nlf.language.additions import ADDITION, adapter_of
from lightning_nlf.language.decoder import Decoder
from lightning_nlf.language.head_distribution import token_distribution
from lightning_nlf.language.hf_folder import ADAPTER
from lightning_nlf.networks.base import Policy
from lightning_nlf.numbers import Count, Size


@dataclass(frozen=True)
class LoRA:
    """LoRA: train only low-rank additions to layers (https://arxiv.org/abs/2106.09685).

    Args:
        r: rank of the additions.
        alpha: the additions are scaled by alpha / r; 0 means 2 · r.
        target_modules: names of the layers to adapt; by default peft's choice for the architecture.
    """

    r: Size = 8
    alpha: Count = 0
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", self.alpha or 2 * self.r)


def with_lora(model: nn.Module, lora: LoRA) -> nn.Module:
    """Add a LoRA adapter to a model.

    Raises:
        ValueError: peft is not installed; a target is not a layer, or shares its weights with another layer.
    """
    try:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise ValueError("lora: peft is not installed; run pip install lightning_nlf[text]") from None
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    try:
        adapted = get_peft_model(model, LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules))
    except ValueError as error:  # for example if a target does not exist
        raise ValueError(f"lora: {error}") from error
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and counts[id(module.get_base_layer().weight)] > 1:
            raise ValueError(
                f"lora: target_modules: {name} shares its weights with another layer, which would also change when "
                "the adapter is merged for export; leave it out"
            )
    return adapted


class WithoutAdapter(Policy):
    """The base model of a LoRA policy, without the adapter. It shares the policy's memory.

    Args: without: context manager that turns the adapter off.
    """

    def __init__(self, policy: Any, without: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self._shared = (policy, without)  # modules in a tuple are not child modules, so not moved or saved twice

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        policy, without = self._shared
        with torch.no_grad(), without():
            return policy.features(obs, where)

    def distribution(self, features: Tensor) -> Distribution:
        policy, without = self._shared

        def scores(rows: Tensor) -> Tensor:  # also called after `distribution` has returned
            with torch.no_grad(), without():
                return policy.scores(rows)

        return token_distribution(features, scores, policy.vocabulary)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """State of the model without the adapter."""
        return {key: x for key, x in self._shared[0].state_dict(*args, **kwargs).items() if ADDITION not in key}


def write_adapter(folder: Path, decoder: Decoder, lora: LoRA, targets: list[str], base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors, for `peft.PeftModel.from_pretrained`.

    Args: targets: names of the adapted layers; base: path or id of the base model.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": decoder.shape.family == "gpt2",  # gpt2 has transposed weights
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER).write_text(json.dumps(config, indent=2) + "\n")
    save_file(adapter_of(decoder), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def save_adapter(folder: Path, model: Any, base: str) -> None:
    """Write the adapter of a peft model, for `peft.PeftModel.from_pretrained`."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft writes an empty template
    config = json.loads((folder / ADAPTER).read_text())
    config |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    (folder / ADAPTER).write_text(json.dumps(config, indent=2) + "\n")
