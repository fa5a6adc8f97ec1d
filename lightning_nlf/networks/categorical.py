"""The next token's distribution, of which only what is asked for is computed."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution


class TokenDistribution(Categorical):
    """A categorical by its unnormalised `scores` (…, V): log-probabilities of single tokens need no (…, V) copy."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self._num_events = scores.shape[-1]
        Distribution.__init__(self, scores.shape[:-1], validate_args=False)

    @property
    def _param(self) -> Tensor:
        return self.scores

    @cached_property
    def logits(self) -> Tensor:  # type: ignore[override]
        """Normalised, (…, V)."""
        return self.scores.log_softmax(-1)

    @property
    def mode(self) -> Tensor:
        return self.scores.argmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        scores = self.scores
        if value.shape != self.batch_shape:  # several values for each, as torch's own allows
            shape = torch.broadcast_shapes(value.shape, self.batch_shape)
            value, scores = value.expand(shape), scores.expand(*shape, -1)
        return _LogProb.apply(scores, value.long())

    def expand(self, batch_shape: Any, _instance: Any = None) -> TokenDistribution:
        return TokenDistribution(self.scores.expand(*batch_shape, self._num_events))


class _LogProb(torch.autograd.Function):
    """x_a − log Σ eˣ. Of (…, V), it keeps the scores alone, and makes one tensor on the way back."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, value: Tensor) -> Tensor:
        normaliser = scores.logsumexp(-1)
        ctx.save_for_backward(scores, value, normaliser)
        return scores.gather(-1, value[..., None])[..., 0] - normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """∂/∂x = 1[a] − softmax(x)"""
        scores, value, normaliser = ctx.saved_tensors
        gradient = gradients[0][..., None]
        of_scores = (scores - normaliser[..., None]).exp_().mul_(-gradient)
        return of_scores.scatter_add_(-1, value[..., None], gradient), None
