"""Training additions of low rank; what they are added to is the reference for free."""

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
from lightning_nlf.numbers import Size


@dataclass(frozen=True)
class LoRA:
    """Train low-rank additions only (https://arxiv.org/abs/2106.09685).

    Args:
        r: their rank; alpha: they count alpha / r times.
        target_modules: names of the layers that get one; by default those that peft has for the architecture.
    """

    r: Size = 8
    alpha: Size = 16
    target_modules: list[str] | None = None


def with_lora(model: nn.Module, lora: LoRA) -> nn.Module:
    """Raises ValueError: peft is missing; a target that is no layer, or has the weights of another."""
    try:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise ValueError("lora needs peft: pip install lightning_nlf[text]") from None
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    try:
        adapted = get_peft_model(model, LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules))
    except ValueError as error:  # such as a target that is nowhere
        raise ValueError(f"lora: {error}") from error
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and counts[id(module.get_base_layer().weight)] > 1:
            raise ValueError(
                f"lora: target_modules: {name} has the same weights as another layer of this model, which would "
                "get the addition too when it is merged for export: leave it out"
            )
    return adapted


class WithoutAdapter(Policy):
    """The model that LoRA started from, in the same memory.

    Args: without: what has the additions off while it is entered.
    """

    def __init__(self, policy: Any, without: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self._shared = (policy, without)  # in a tuple: no children, so neither moved nor saved twice

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        policy, without = self._shared
        with torch.no_grad(), without():
            return policy.features(obs, where)

    def distribution(self, features: Tensor) -> Distribution:
        policy, without = self._shared

        def scores(rows: Tensor) -> Tensor:  # asked later too
            with torch.no_grad(), without():
                return policy.scores(rows)

        return token_distribution(features, scores, policy.vocabulary)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Of the model without the additions."""
        return {key: x for key, x in self._shared[0].state_dict(*args, **kwargs).items() if ADDITION not in key}


def write_adapter(folder: Path, decoder: Decoder, lora: LoRA, targets: list[str], base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors, for `peft.PeftModel.from_pretrained`.

    Args: targets: names of the layers with additions; base: the path of the model that they are added to, or its id.
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
        "fan_in_fan_out": decoder.shape.family == "gpt2",  # whose weights stand the other way in its layout
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER).write_text(json.dumps(config, indent=2) + "\n")
    save_file(adapter_of(decoder), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def save_adapter(folder: Path, model: Any, base: str) -> None:
    """The same of a model of peft."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form with nothing filled in
    config = json.loads((folder / ADAPTER).read_text())
    config |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    (folder / ADAPTER).write_text(json.dumps(config, indent=2) + "\n")
