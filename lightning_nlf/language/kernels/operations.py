"""The C++ kernels as functions of tensors, with gradients."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_nlf.language.kernels.build import library

TYPES = (torch.float32, torch.bfloat16)
WIDTHS = (16, 32, 64, 128)  # supported widths of an attention head


def fit(x: Tensor, width: int | None = None) -> bool:
    """Whether the kernels support the device and dtype of `x` and, if given, attention heads of this width."""
    supported = x.device.type == "cpu" and x.dtype in TYPES and width in (None, *WIDTHS)
    return supported and library(x.dtype) is not None


def gelu(x: Tensor) -> Tensor:
    """GELU (tanh form) x · ½ (1 + tanh(√(2/π) (x + 0.044715 x³))), https://arxiv.org/abs/1606.08415."""
    x = x.contiguous()
    return _Gelu.apply(x) if torch.is_grad_enabled() else _Gelu.forward(None, x)


def add_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    """s = x + y in float32, and its norm in the dtype of y: LayerNorm if `centred`, else RMSNorm.

    Args: x (N, d) float32; y (N, d); weight, bias (d,) float32.
    """
    assert x.shape == y.shape and weight.shape == x.shape[1:] and x.dtype == weight.dtype == torch.float32
    arguments = (x.contiguous(), y.contiguous(), weight, bias, float(eps), centred)
    return _AddNorm.apply(*arguments) if torch.is_grad_enabled() else _AddNorm.forward(None, *arguments)


def attend_step(qkv: Tensor, store: Tensor, columns: int, bias: Tensor) -> Tensor:
    """Attention softmax(q kᵀ / √e + bias) v of one new token per row. The new keys and values are written to `store`.

    Args:
        qkv: (B, heads + 2 · kv_heads, e), queries, keys and values of the new tokens.
        store: (B, 2 · kv_heads, C, e), keys and then values. The first `columns` columns are used, including the new
            one.
        bias: (B, ≥ columns) float32: 0 or −∞; at least one 0 in each row.
    Returns: (B, heads · e)
    """
    rows, all_heads, width = qkv.shape
    key_value_heads = store.shape[1]
    heads = all_heads - key_value_heads
    assert store.is_contiguous() and store.dtype == qkv.dtype
    out = qkv.new_empty(rows, heads * width)
    _call(
        "attend_steps", qkv.dtype, width, qkv.contiguous(), store, store.shape[2], bias, bias.stride(0), out, rows,
        heads, key_value_heads // 2, columns,
    )  # fmt: skip
    return out


def attend_spans(qkv: Tensor, spans: Tensor, heads: int) -> Tensor:
    """Causal attention of flat sequences. A sequence may continue a prefix of another sequence.  → (N, heads · e)

    Args:
        qkv: (N, heads + 2 · kv_heads, e), queries, keys and values of all tokens.
        spans: (S, 4) int64: first token and number of tokens of each sequence, and then of its prefix. Each token is in
            exactly one sequence, and a sequence comes after the sequence that it continues.
    """
    return _AttendSpans.apply(qkv.contiguous(), spans, heads)


def log_sums(scores: Tensor) -> Tensor:
    """log Σ eˣ of scores (…, V).  → (…,) float32, without gradient"""
    out = scores.new_empty(scores.shape[:-1], dtype=torch.float32)
    _call("log_sums", scores.dtype, scores.detach().contiguous(), out.numel(), scores.shape[-1], out)
    return out


def log_prob_back(scores: Tensor, normaliser: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Gradient of Σ weight · log p(token): weight (1[token] − p), for scores (…, V) and the other arguments (…,)."""
    grad = torch.empty_like(scores, memory_format=torch.contiguous_format)
    rows = (x.contiguous() for x in (normaliser, tokens, weights))
    _call("log_prob_back", scores.dtype, scores.contiguous(), *rows, tokens.numel(), scores.shape[-1], grad)
    return grad


def draw(scores: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Sample tokens (B,) from float32 scores (B, V) by inversion, and return their log-probabilities.

    Args: uniform (B,) float64 in [0, 1).
    """
    assert scores.dtype == torch.float32 and uniform.dtype == torch.float64
    tokens, log_probs = uniform.new_empty(len(uniform), dtype=torch.long), scores.new_empty(len(scores))
    arguments = (scores.contiguous(), uniform.contiguous())
    _call("draw", scores.dtype, *arguments, len(scores), scores.shape[-1], tokens, log_probs)
    return tokens, log_probs


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if ctx is not None:
            ctx.save_for_backward(x)
        y = torch.empty_like(x)
        _call("gelu", x.dtype, x, y, x.numel())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        x_grad = torch.empty_like(x)
        _call("gelu_back", x.dtype, x, grads[0].contiguous(), x_grad, x.numel())
        return x_grad


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, eps: float, centred: bool
    ) -> tuple[Tensor, Tensor]:
        rows, width = x.shape
        total, out, means, scales = torch.empty_like(x), torch.empty_like(y), x.new_empty(rows), x.new_empty(rows)
        _call("add_norm", y.dtype, x, y, weight, bias, eps, centred, total, out, means, scales, rows, width)
        if ctx is not None:
            ctx.save_for_backward(total, weight, means, scales)
            ctx.centred, ctx.biased, ctx.dtype = centred, bias is not None, y.dtype
            ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, means, scales = ctx.saved_tensors
        of_total, of_out = (None if x is None else x.contiguous() for x in grads)
        if of_out is None:
            of_out = total.new_zeros(total.shape, dtype=ctx.dtype)
        x_grad, y_grad = torch.empty_like(total), torch.empty_like(of_out)
        weight_grad, bias_grad = torch.empty_like(weight), torch.empty_like(weight) if ctx.biased else None
        _call(
            "add_norm_back", ctx.dtype, total, weight, ctx.centred, means, scales, of_total, of_out, x_grad, y_grad,
            weight_grad, bias_grad, *total.shape,
        )  # fmt: skip
        return x_grad, y_grad, weight_grad, bias_grad, None, None


class _AttendSpans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, spans: Tensor, heads: int) -> Tensor:
        tokens, all_heads, width = qkv.shape
        out = qkv.new_empty(tokens, heads * width)
        statistics = qkv.new_empty(tokens, heads, 2, dtype=torch.float32)
        ctx.heads, ctx.kv_heads = heads, (all_heads - heads) // 2
        _call("attend_spans", qkv.dtype, width, qkv, spans, len(spans), heads, ctx.kv_heads, out, statistics)
        ctx.save_for_backward(qkv, spans, out, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        qkv, spans, out, statistics = ctx.saved_tensors
        grad = torch.empty_like(qkv)
        _call(
            "attend_spans_back", qkv.dtype, qkv.shape[-1], qkv, spans, len(spans), ctx.heads, ctx.kv_heads, out,
            statistics, grads[0].contiguous(), grad,
        )  # fmt: skip
        return grad, None, None


def _call(name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
    """Call a kernel. Its arguments are the addresses of tensors (0 for None), numbers, and the number of threads."""
    function = getattr(library(dtype), f"nlf_{name}")
    if function.argtypes is None:
        kinds = [ctypes.c_float if isinstance(x, float) else ctypes.c_int64 for x in arguments]
        function.argtypes, function.restype = [*kinds, ctypes.c_int], None
    words = [x.data_ptr() if isinstance(x, Tensor) else x or 0 for x in arguments]
    function(*words, torch.get_num_threads())
