"""A distribution from its parameters, and the parameters of a distribution."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal


def distribution_of(params: dict[str, Tensor]) -> Distribution:
    """The expert's distribution from `Batch.expert_params`: a Gaussian or a categorical, by the names it has.

    Raises:
        ValueError: a Gaussian with σ = 0, which is a point mass and has no density to compare.
    """
    if "logits" in params:
        return Categorical(logits=params["logits"], validate_args=False)
    if not bool((params["std"] > 0).all()):
        raise ValueError("the expert is deterministic (std = 0): only its actions can be imitated (divergence: nll)")
    return Independent(Normal(params["mean"], params["std"], validate_args=False), 1, validate_args=False)


def params_of(distribution: Distribution) -> dict[str, Tensor]:
    """What `distribution_of` is made from; each of the batch shape and one dimension more.

    Raises:
        ValueError: neither a Gaussian nor a categorical.
    """
    if isinstance(distribution, Categorical):
        return {"logits": distribution.logits}
    if isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal):
        return {"mean": distribution.base_dist.loc, "std": distribution.base_dist.scale}
    raise ValueError(f"an expert is a Gaussian or a categorical, not a {type(distribution).__name__}")
