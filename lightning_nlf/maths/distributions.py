"""Conversion between distributions and their parameters, in both directions."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal


def distribution_of(params: dict[str, Tensor]) -> Distribution:
    """Build a Gaussian or categorical distribution from parameters such as those in `Batch.expert_params`.

    Raises:
        ValueError: a Gaussian has σ = 0. It is then a point mass, which has no density to compare with.
    """
    if "logits" in params:
        return Categorical(logits=params["logits"], validate_args=False)
    if not bool((params["std"] > 0).all()):
        raise ValueError("the expert is deterministic (std = 0), so only its actions are known; use divergence: nll")
    return Independent(Normal(params["mean"], params["std"], validate_args=False), 1, validate_args=False)


def params_of(distribution: Distribution) -> dict[str, Tensor]:
    """Parameters from which `distribution_of` rebuilds a distribution.

    Each has one more dimension than the batch shape.

    Raises:
        ValueError: the distribution is neither a Gaussian nor a categorical.
    """
    if isinstance(distribution, Categorical):
        return {"logits": distribution.logits}
    if isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal):
        return {"mean": distribution.base_dist.loc, "std": distribution.base_dist.scale}
    raise ValueError(f"an expert must be a Gaussian or a categorical, not a {type(distribution).__name__}")
