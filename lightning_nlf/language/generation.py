"""Text generation: the token loop for one turn, with a policy that reads new tokens and keeps a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.language import decode_graph, kernels
from lightning_nlf.language.reader import Reader

COMPACT_AT = 0.75  # finished rows leave the batch when at most this share of it is still running


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
    """Sample replies until a stop token, which is included, or for `max_new` tokens.

    Args:
        ids: (B, L), the tokens that follow those in `state`, right-padded; lengths: (B,), each ≥ 1.
        stop: token ids; each of these ends a reply.
        copies: number of replies to each row; these replies are adjacent. Their prompt is read once. Only at the first
            turn.
        seeds: (B·copies,) int64; the samples of row i depend on seeds[i] only, not on other rows. Random by default.
        top_k: sample from the k most likely tokens; 0 means all tokens.
        top_p: sample from the most likely tokens that together have the probability p.
        temperature: > 0. The logits are divided by it before top_k and top_p, in sampling only.
        deterministic: take the most likely token instead of sampling.
        resume: another turn follows, so return the state.
        keep: (B,), the rows of `state` that take part in this turn, if some dialogues have ended. By default all rows.
        limits: (B·copies,), maximum number of tokens of each reply, from 0 to `max_new`. By default `max_new`.
    Returns: tokens (B·copies, N ≤ max_new), right-padded with the first stop token; log_probs (B·copies, N) under the
        distribution that was sampled from (with temperature, top_k and top_p, normalised), 0 at padding; lengths
        (B·copies,); the state, which has not read the last token, or None.
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
            out = decode_graph.decode(policy, logits, state, uniform, limits, tuple(stop), how, resume)
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
    """Sample replies from the first token's logits (B, V). Finished rows leave the batch."""
    count, steps = uniform.shape
    stops = torch.as_tensor(stop, device=logits.device)
    tokens = stops[0].expand(count, steps).clone()
    log_probs = torch.zeros(count, steps, device=logits.device)
    ends = torch.zeros(count, dtype=torch.long, device=logits.device)
    rows = torch.arange(count, device=logits.device)  # row numbers of the working batch
    running = limits > 0  # whether each row of the working batch is running
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
            remaining = running.nonzero()[:, 0]
            state, rows, token = policy.rows_of(state, remaining), rows[remaining], token[remaining]
            running = torch.ones_like(rows, dtype=torch.bool)
        logits, state = policy.read(token[:, None], running.long(), state)
        if len(rows) == count:
            whole = state
    if resume and len(rows) < count:
        whole = policy.with_rows(whole, rows, state)
    return tokens, log_probs, ends, whole


@dataclass(frozen=True)
class Draw:
    """Rule for sampling the next token. See `reply` for the parameters."""

    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0
    deterministic: bool = False

    def __call__(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Sample one token per row by inverting the cumulative distribution.

        Returns tokens and log-probabilities, (B,).

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
            # The clamp keeps the target below the last entry after rounding. `right` skips tokens of probability 0.
            target = uniform[:, None].to(cumulative.dtype).clamp(max=1 - 2.0**-24) * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, target, right=True)
        log_prob = logits.gather(-1, token) - highest - cumulative[:, -1:].log()
        return token[:, 0], log_prob[:, 0]


def truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Top-k and then top-p truncation: removed tokens get −∞. A `top_k` of 0 keeps all tokens.  (B, V)"""
    values, order = logits.sort(-1, descending=True)
    if top_k:
        beyond = torch.arange(values.shape[-1], device=values.device) >= top_k
        values = values.masked_fill(beyond, -torch.inf)
    if top_p < 1:
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)  # probability of all tokens that are more likely
        values = values.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter(-1, order, values)


def uniforms(seeds: Tensor, steps: int) -> Tensor:
    """Uniform float64 in [0, 1) for each (seed, step): SplitMix64 (Steele, Lea & Flood 2014).  (B,) → (B, steps)"""
    increments = [_signed((step + 1) * 0x9E3779B97F4A7C15) for step in range(steps)]
    x = seeds[:, None] + torch.tensor(increments, device=seeds.device)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shifted(x, 31)
    return _shifted(x, 11).double() * 2.0**-53


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift x >> bits, which treats the int64 as an unsigned number."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """Convert x to the int64 that has the lowest 64 bits of x."""
    return (x + 2**63) % 2**64 - 2**63
