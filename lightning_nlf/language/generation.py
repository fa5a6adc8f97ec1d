"""Text generation, the token loop: one turn from a policy that reads what is new and keeps its state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.language import decode_graph, kernels
from lightning_nlf.language.reader import Reader

COMPACT_AT = 0.75  # finished rows leave the batch when this share of it, or less, still runs


def reply(
    policy: Reader,
    ids: Tensor,
    lengths: Tensor,
    state: Any = None,
    *,
    stop: Sequence[int],
    max_new: int,
    copies: int = 1,
    seeds: Tensor | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    temperature: float = 1.0,
    deterministic: bool = False,
    resume: bool = False,
    keep: Tensor | None = None,
    limits: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Sample until a stop token, which is kept, or for `max_new` tokens.

    Args:
        ids: (B, L) what is new since `state`, right-padded; lengths: (B,), each ≥ 1.
        stop: token ids, each of which ends a reply.
        copies: replies to each row, next to each other; what they share is read once. At the first turn only.
        seeds: (B·copies,) int64: what row i draws depends on seeds[i] alone, not on its neighbours. By default drawn.
        top_k, top_p: only the k likeliest tokens, 0 is all; only the likeliest that have the probability p together.
        temperature: what logits are divided by before that, of sampling alone; > 0.
        deterministic: the likeliest token instead of a draw.
        resume: another turn follows, from the state that is returned.
        keep: (B,) the rows of `state` that this turn is about, where other dialogues are over. By default all.
        limits: (B·copies,) tokens of each reply at most, 0 for none at all. By default, and never above, `max_new`.
    Returns: tokens (B·copies, N ≤ max_new), right-padded with the first stop token; log_probs (B·copies, N) under the
        distribution that was sampled from (at the temperature, and of what top_k and top_p leave, scaled to 1), 0 on
        padding; lengths (B·copies,); the state, which has not read the last token, or None.
    """
    if keep is not None:
        state = policy.rows_of(state, keep.to(ids.device))
    how, count = Draw(top_k, top_p, temperature, deterministic), len(ids) * copies
    if seeds is None:
        seeds = torch.randint(2**62, (count,))
    uniform = uniforms(seeds.to(ids.device), max_new)
    limits = (torch.full((count,), max_new) if limits is None else limits.clamp(max=max_new)).to(ids.device)
    with policy.merged():
        logits, state = policy.read(ids, lengths, state, room=max_new)
        if copies > 1:
            of = torch.arange(len(ids), device=ids.device).repeat_interleave(copies)
            logits, state = logits[of], policy.rows_of(state, of)
        if decode_graph.fits(policy, logits):
            out = decode_graph.decode(policy, logits, state, uniform, limits, tuple(stop), how)
        else:
            out = _decode(policy, logits, state, uniform, limits, tuple(stop), how, resume)
    tokens, log_probs, ends, state = out
    width = int(ends.max())
    return tokens[:, :width], log_probs[:, :width], ends, state if resume else None


def _decode(
    policy: Reader,
    logits: Tensor,
    state: Any,
    uniform: Tensor,
    limits: Tensor,
    stop: tuple[int, ...],
    draw: Draw,
    resume: bool,
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Replies from the first token's logits (B, V) on; finished rows leave the batch."""
    count, steps = uniform.shape
    stops = torch.as_tensor(stop, device=logits.device)
    tokens = stops[0].expand(count, steps).clone()
    log_probs = torch.zeros(count, steps, device=logits.device)
    ends = torch.zeros(count, dtype=torch.long, device=logits.device)
    rows = torch.arange(count, device=logits.device)  # of the whole, that are in the working batch
    running = limits > 0  # of those
    whole = state
    for step in range(steps):
        token, log_prob = draw(logits, uniform[rows, step])
        live = rows[running]
        tokens[live, step], log_probs[live, step] = token[running], log_prob[running]
        ends[live] = step + 1
        running = running & (token[:, None] != stops).all(1) & (step + 1 < limits[rows])
        left = int(running.sum())
        if left == 0 or step + 1 == steps:
            break
        if left <= COMPACT_AT * len(rows):
            if resume and len(rows) < count:
                whole = policy.with_rows(whole, rows, state)
            kept = running.nonzero()[:, 0]
            state, rows, token = policy.rows_of(state, kept), rows[kept], token[kept]
            running = torch.ones_like(rows, dtype=torch.bool)
        logits, state = policy.read(token[:, None], running.long(), state)
        if len(rows) == count:
            whole = state
    if resume and len(rows) < count:
        whole = policy.with_rows(whole, rows, state)
    return tokens, log_probs, ends, whole


@dataclass(frozen=True)
class Draw:
    """How the next token is chosen; the knobs are those of `reply`."""

    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0
    deterministic: bool = False

    def __call__(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """A token a row by the inverse of the cumulative distribution, and its log-probability; both (B,).

        Args: logits (B, V); uniform (B,) in [0, 1).
        """
        if self.temperature != 1:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        if self.top_k or self.top_p < 1:
            logits = truncated(logits, self.top_k, self.top_p)
        if not self.deterministic and logits.dtype == torch.float32 and kernels.fit(logits):
            return kernels.draw(logits, uniform.double())
        highest, token = logits.max(-1, keepdim=True)
        cumulative = (logits - highest).exp().cumsum(-1)
        if not self.deterministic:
            # Below the last whatever is rounded, and `right`: a token without probability is never hit.
            target = uniform[:, None].to(cumulative.dtype).clamp(max=1 - 2.0**-24) * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, target, right=True)
        log_prob = logits.gather(-1, token) - highest - cumulative[:, -1:].log()
        return token[:, 0], log_prob[:, 0]


def truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """−∞ for all but the `top_k` likeliest (0: all), and of those all but the likeliest that reach `top_p`.  (B, V)"""
    values, order = logits.sort(-1, descending=True)
    if top_k:
        beyond = torch.arange(values.shape[-1], device=values.device) >= top_k
        values = values.masked_fill(beyond, -torch.inf)
    if top_p < 1:
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)  # the probability of those that come first
        values = values.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter(-1, order, values)


def uniforms(seeds: Tensor, steps: int) -> Tensor:
    """Numbers in [0, 1), float64, of (seed, step) alone: SplitMix64 (Steele, Lea & Flood 2014).  (B,) → (B, steps)"""
    increments = [_signed((step + 1) * 0x9E3779B97F4A7C15) for step in range(steps)]
    x = seeds[:, None] + torch.tensor(increments, device=seeds.device)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shifted(x, 31)
    return _shifted(x, 11).double() * 2.0**-53


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits of the unsigned number that the int64 stands for."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The int64 with the lowest 64 bits of x."""
    return (x + 2**63) % 2**64 - 2**63
