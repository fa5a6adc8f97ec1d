"""Training additions of low rank; what they are added to is the reference for free."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

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
    """The model that LoRA started from, in the same memory."""

    def __init__(self, policy: Policy, model: Any) -> None:
        super().__init__()
        self._shared = (policy, model)  # in a tuple: no children, so neither moved nor saved twice

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        policy, model = self._shared
        with torch.no_grad(), model.disable_adapter():
            return policy.features(obs, where)

    def distribution(self, features: Tensor) -> Distribution:
        policy, model = self._shared
        with torch.no_grad(), model.disable_adapter():
            return policy.distribution(features)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Of the model without the additions."""
        return {key: x for key, x in self._shared[0].state_dict(*args, **kwargs).items() if "lora_" not in key}
