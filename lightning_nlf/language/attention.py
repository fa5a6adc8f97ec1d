"""Causal attention over right-padded rows, which may share a prefix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(R, W, heads + 2 · kv_heads, e) → queries (R, heads, W, e), keys and values (R, keys, W, e)."""
    keys = (qkv.shape[2] - heads) // 2
    queries, k, v = qkv.transpose(1, 2).split([heads, keys, keys], 1)
    return queries, k, v


def attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention softmax(q kᵀ / √e + bias) v.

    Causal without a bias; keys are then as many as queries.  → (R, S, heads · e)

    Args: queries (R, heads, S, e); keys, values (R, kv_heads, T, e); bias (R, 1, S, T): 0 or −∞.
    """
    if queries.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # On a CPU, bfloat16 takes several times as long as float32, and eight times as long in the backward pass.
        with torch.autocast("cpu", enabled=False):
            return attention(queries.float(), keys.float(), values.float(), bias)
    rows, heads, steps, width = queries.shape
    shared = heads // keys.shape[1]
    if bias is None:
        if shared > 1:
            keys, values = (x.repeat_interleave(shared, 1) for x in (keys, values))
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    else:
        # heads that share keys are stacked along the steps, to avoid copies of the keys
        folded = queries.reshape(rows, -1, shared * steps, width)
        bias = (bias if shared == 1 else bias.repeat(1, 1, shared, 1)).to(queries.dtype)  # kernels of a GPU need it
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=bias).reshape(queries.shape)
    return out.transpose(1, 2).flatten(2)
