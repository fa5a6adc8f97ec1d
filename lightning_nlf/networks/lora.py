"""Training additions of low rank; what they are added to is the reference for free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("lora needs peft: pip install lightning_nlf[text]") from None
    return get_peft_model(
        model,
        LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules),
    )


class WithoutAdapter(Policy):
    """The model that LoRA started from, in the same memory."""

    def __init__(self, policy: Policy, model: Any) -> None:
        super().__init__()
        self._shared = (policy, model)  # in a tuple: no children, so neither moved nor saved twice

    @contextmanager
    def _off(self) -> Iterator[Policy]:
        policy, model = self._shared
        with model.disable_adapter():
            yield policy

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        with torch.no_grad(), self._off() as policy:
            return policy.features(obs, where)

    def distribution(self, features: Tensor) -> Distribution:
        with torch.no_grad(), self._off() as policy:
            return policy.distribution(features)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Of the model without the additions."""
        return {key: x for key, x in self._shared[0].state_dict(*args, **kwargs).items() if "lora_" not in key}
