"""Estimators of a KL divergence from samples: k1, k2 and k3.

Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(log_ratio: Tensor) -> Tensor:
    """k1 estimator of KL(π ‖ π_ref) from a sample of π: d = log π − log π_ref.

    Unbiased, but often negative.  Any shape.
    """
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """k2 estimator d²/2: biased, but with low variance.

    Its gradient is an unbiased estimate of the gradient of the KL.
    """
    return log_ratio**2 / 2


def k3(log_ratio: Tensor) -> Tensor:
    """k3 estimator exp(−d) − 1 + d: unbiased and never negative."""
    return torch.expm1(-log_ratio) + log_ratio
