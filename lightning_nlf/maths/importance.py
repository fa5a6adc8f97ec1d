"""Importance weights of replies that another process sampled."""

from __future__ import annotations

import torch
from torch import Tensor


def truncated_ratio(log_ratio: Tensor, cap: float) -> Tensor:
    """Truncated importance sampling: min(ρ, C) with ρ = π_trainer / π_server, of tokens or whole replies.

    The policy gradient of a reply by the server is multiplied by this weight. ρ makes the gradient that of the
    trainer's own samples, and the cap C bounds its variance.
    Source: Ionides 2008, https://doi.org/10.1198/106186008X320456; for generation servers, Yao et al. 2025,
    https://fengyao.notion.site/off-policy-rl.

    Args: log_ratio: log ρ, any shape; cap: C > 0.  Returns the same shape.
    """
    return torch.exp(log_ratio).clamp(max=cap)
