"""Next-token distribution for a large vocabulary: chunked log-softmax, without the (tokens × vocabulary) matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_nlf.language.token_distribution import TokenDistribution

CHUNK = 2**22  # scores (tokens × vocabulary) in memory at a time: 16 MiB in float32
LARGE, WHOLE = 2**14, 2**24  # vocabularies below LARGE tokens are only chunked above WHOLE scores
Scores = Callable[[Tensor], Tensor]  # features (…, d) → (…, V), not normalised
Rule = Callable[[TokenDistribution, Tensor | None], Tensor]  # (distribution, values (n,)) → numbers (n,)


@dataclass(frozen=True)
class LinearHead:
    """Linear output layer with a temperature: scores (W x + b) / temperature.

    Args: weight (V, d); bias (V,); wide: whether scores are always float32. If not, scores at temperature 1 have the
        precision of the product.
    """

    weight: Tensor
    bias: Tensor | None = None
    temperature: float = 1.0
    wide: bool = False

    def __call__(self, features: Tensor) -> Tensor:
        return self.finished(F.linear(features, self.weight, self.bias))

    def finished(self, product: Tensor) -> Tensor:
        """Scores from the product W x + b, both (…, V)."""
        scores = product.float() if self.wide or self.temperature != 1 else product
        return scores if self.temperature == 1 else scores / self.temperature


def token_distribution(features: Tensor, head: Scores, outcomes: int) -> TokenDistribution:
    """Distribution over `outcomes` tokens, of batch shape (…), from features (…, d). Large distributions use chunks."""
    if features.shape[:-1].numel() * outcomes <= (WHOLE if outcomes < LARGE else CHUNK):
        return TokenDistribution(head(features))
    return HeadDistribution(features, head, outcomes)


class HeadDistribution(TokenDistribution):
    """Categorical distribution over tokens, given by hidden states and the head that scores them.

    Log-probabilities, entropy and mode are computed in chunks of tokens and recomputed in the backward pass. At most
    `CHUNK` scores are thus in memory. Everything else (`logits`, a divergence, a sample) computes all scores.

    Args: features (…, d); head: function from features to scores; outcomes: V.
    """

    def __init__(self, features: Tensor, head: Scores, outcomes: int) -> None:
        self.features, self.head = features, head
        self._num_events = outcomes
        self._learns = torch.is_grad_enabled()
        self._half = _half(features)
        self._last: tuple[Tensor, bool, Tensor] | None = None
        Distribution.__init__(self, features.shape[:-1], validate_args=False)

    @cached_property
    def scores(self) -> Tensor:  # type: ignore[override]
        with self._as_made():
            return self.head(self.features)

    @property
    def _param(self) -> Tensor:  # type: ignore[override]  # that torch's own methods read
        return self.scores

    @property
    def param_shape(self) -> torch.Size:
        return torch.Size([*self.batch_shape, self._num_events])

    @property
    def mode(self) -> Tensor:
        with torch.no_grad():
            return self._numbers(lambda part, _: part.mode, None)

    def log_prob(self, value: Tensor) -> Tensor:
        if value.shape != self.batch_shape:
            return super().log_prob(value)
        learns = torch.is_grad_enabled()
        if self._last is None or self._last[1] != learns or not torch.equal(self._last[0], value):
            # kept, because imitation scores the same actions twice: as the row's and as the expert's
            self._last = value, learns, self._numbers(_log_prob, value.long())
        return self._last[2]

    def entropy(self) -> Tensor:
        return self._numbers(lambda part, _: part.entropy(), None)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TokenDistribution:
        return TokenDistribution(self.scores.expand(*batch_shape, self._num_events))

    @contextmanager
    def _as_made(self) -> Iterator[None]:
        """Context manager with the precision in which the distribution was created.

        Gradients are computed only if they were computed at the creation.
        """
        device, learns = self.features.device.type, self._learns and torch.is_grad_enabled()
        half = torch.autocast(device, enabled=False) if self._half is None else torch.autocast(device, self._half)
        with half, torch.set_grad_enabled(learns):
            yield

    def _numbers(self, rule: Rule, values: Tensor | None) -> Tensor:
        """The numbers that `rule` computes from all tokens, in the batch shape."""
        rows = self.features.flatten(0, -2)
        parts = _parts(len(rows), self._num_events, None if values is None else values.flatten())
        with self._as_made():
            if isinstance(self.head, LinearHead):
                arguments = (self.head, rule, parts, self._half, torch.is_grad_enabled())
                numbers = _OfProduct.apply(rows, self.head.weight, self.head.bias, *arguments)
            else:
                numbers = torch.cat([_again(rows[part], self.head, rule, part_values) for part, part_values in parts])
        return numbers.view(self.batch_shape)


def _log_prob(part: TokenDistribution, values: Tensor | None) -> Tensor:
    assert values is not None
    return part.log_prob(values)


def _half(x: Tensor) -> torch.dtype | None:
    """The precision of matrix products under autocast; None without autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


Part = tuple[slice, Tensor | None]


def _parts(rows: int, outcomes: int, values: Tensor | None) -> list[Part]:
    """Slices of rows whose scores fit in memory together, and the values (n,) of each slice."""
    size = max(1, CHUNK // outcomes)
    slices = [slice(first, first + size) for first in range(0, rows, size)]
    return [(part, None if values is None else values[part]) for part in slices]


def _again(rows: Tensor, head: Scores, rule: Rule, values: Tensor | None) -> Tensor:
    """Numbers of a rule for each row, with any head. The backward pass calls the head again."""

    def numbers(chunk: Tensor) -> Tensor:
        return rule(TokenDistribution(head(chunk)), values)

    return checkpoint(numbers, rows, use_reentrant=False) if torch.is_grad_enabled() else numbers(rows)


class _OfProduct(torch.autograd.Function):
    """Numbers of a rule for each row of W x + b, with chunked gradients.

    With a frozen head, the gradient of the features is computed in the forward pass, where the scores are in memory
    anyway. With a trained head, scores are recomputed in the backward pass, and the gradient of the head is summed over
    chunks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: LinearHead,
        rule: Rule,
        parts: list[Part],
        half: torch.dtype | None,
        learns: bool,
    ) -> Tensor:
        frozen = not (weight.requires_grad or bias is not None and bias.requires_grad)
        ctx.jacobian = torch.empty_like(rows) if learns and frozen and rows.requires_grad else None
        numbers, normalisers = [], []
        with _exact(rows):
            x, w, b = (y if y is None or half is None else y.to(half) for y in (rows, weight, bias))
            assert x is not None and w is not None
            for part, part_values in parts:
                product = F.linear(x[part], w, b)
                if ctx.jacobian is not None:
                    number, of_product = _differentiated(product, head, rule, part_values)
                    numbers.append(number)
                    ctx.jacobian[part] = of_product @ w
                    continue
                distribution = TokenDistribution(head.finished(product))
                numbers.append(rule(distribution, part_values))
                if learns:
                    normalisers.append(distribution.normaliser)
        ctx.head, ctx.rule, ctx.parts, ctx.half = head, rule, parts, half
        if normalisers:
            ctx.save_for_backward(rows, weight, bias, torch.cat(normalisers))
        return torch.cat(numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, nothing = gradients[0], (None,) * 5
        if ctx.jacobian is not None:
            return ctx.jacobian * gradient[:, None].to(ctx.jacobian.dtype), None, None, *nothing
        rows, weight, bias, normaliser = ctx.saved_tensors
        of_rows, of_weight, of_bias = (
            torch.zeros_like(y) if needed else None
            for y, needed in zip((rows, weight, bias), ctx.needs_input_grad, strict=False)
        )
        with _exact(rows):
            x, w, b = (y if y is None or ctx.half is None else y.to(ctx.half) for y in (rows, weight, bias))
            for part, values in ctx.parts:
                product = F.linear(x[part], w, b)
                _, of_product = _differentiated(product, ctx.head, ctx.rule, values, gradient[part], normaliser[part])
                if of_rows is not None:
                    of_rows[part] = of_product @ w
                if of_weight is not None:
                    _add_product(of_weight, of_product, x[part])
                if of_bias is not None:
                    of_bias += of_product.sum(0)
        return of_rows, of_weight, of_bias, *nothing


def _differentiated(
    product: Tensor,
    head: LinearHead,
    rule: Rule,
    values: Tensor | None,
    gradient: Tensor | None = None,
    normaliser: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The rule's numbers (n,), and the gradient of the product (n, V) for their sum, weighted by `gradient`.

    Args: gradient (n,): weights; normaliser (n,): log-sum-exp of the scores, if it has been computed.
    """
    with torch.enable_grad():
        leaf = product.detach().requires_grad_()
        distribution = TokenDistribution(head.finished(leaf))
        if normaliser is not None:
            distribution.normaliser = normaliser
        numbers = rule(distribution, values)
        gradient = torch.ones_like(numbers) if gradient is None else gradient.to(numbers.dtype)
        (of_product,) = torch.autograd.grad(numbers, leaf, gradient)
    return numbers.detach(), of_product


def _add_product(total: Tensor, of_product: Tensor, x: Tensor) -> None:
    """total (V, d) += of_productᵀ (V, n) x (n, d), in place if the dtypes are equal."""
    if total.dtype == of_product.dtype:
        total.addmm_(of_product.T, x)
    else:
        total += of_product.T @ x


def _exact(x: Tensor) -> torch.autocast:
    """Context manager without autocast, because precisions are set explicitly in this module."""
    return torch.autocast(x.device.type, enabled=False)
