"""Categorical distribution of the next token. It computes only the quantities that are requested."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from lightning_nlf.language import kernels


class TokenDistribution(Categorical):
    """Categorical distribution given by unnormalised `scores` (…, V). No normalised copy of the scores is kept.

    Scores may be in half precision. Log-probabilities and entropy are in float32 even then.
    """

    def __init__(self, scores: Tensor) -> None:
        self.scores = self._param = scores
        self._num_events = scores.shape[-1]
        Distribution.__init__(self, scores.shape[:-1], validate_args=False)

    @cached_property
    def logits(self) -> Tensor:
        """Normalised logits, (…, V)."""
        return _wide(self.scores).log_softmax(-1)

    @cached_property
    def normaliser(self) -> Tensor:
        """log Σ eˣ, (…), without gradient, computed once."""
        scores = self.scores.detach()
        return kernels.log_sums(scores) if kernels.fit(scores) else _wide(scores).logsumexp(-1)

    @property
    def mode(self) -> Tensor:
        return self.scores.argmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        scores, normaliser = self.scores, self.normaliser
        if value.shape != self.batch_shape:  # several values per distribution, as torch allows
            shape = torch.broadcast_shapes(value.shape, self.batch_shape)
            value, scores, normaliser = value.expand(shape), scores.expand(*shape, -1), normaliser.expand(shape)
        return _LogProb.apply(scores, normaliser, value.long())

    def entropy(self) -> Tensor:
        return _Entropy.apply(self.scores, self.normaliser)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TokenDistribution:
        return TokenDistribution(self.scores.expand(*batch_shape, self._num_events))


def _wide(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


class _LogProb(torch.autograd.Function):
    """log p(a) = x_a − log Σ eˣ. Saves only the scores. The backward pass allocates one tensor (…, V)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, normaliser: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(scores, normaliser, value)
        return scores.gather(-1, value[..., None])[..., 0] - normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """∂/∂x = 1[a] − p, p = softmax(x)"""
        scores, normaliser, value = ctx.saved_tensors
        if kernels.fit(scores):
            return kernels.log_prob_back(scores, normaliser, value, gradients[0]), None, None
        gradient = gradients[0][..., None]
        of_scores = (scores - normaliser[..., None]).exp_().mul_(-gradient)
        return of_scores.scatter_add_(-1, value[..., None], gradient), None, None


class _Entropy(torch.autograd.Function):
    """Entropy H = −Σ p log p. Saves only the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, normaliser: Tensor) -> Tensor:
        entropy = torch.special.entr((scores - normaliser[..., None]).exp_()).sum(-1)
        ctx.save_for_backward(scores, normaliser, entropy)
        return entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """∂H/∂x = −p (log p + H)"""
        scores, normaliser, entropy = ctx.saved_tensors
        p = (scores - normaliser[..., None]).exp_()
        of_scores = torch.special.entr(p).sub_(p.mul_(entropy[..., None]))
        return of_scores.mul_(gradients[0][..., None]), None
