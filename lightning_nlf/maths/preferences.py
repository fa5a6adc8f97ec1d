"""Losses for preference pairs and for rankings with ties. They apply to rewards, or to β times log-ratios."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_nlf.maths.means import check_shapes


class Pairs(NamedTuple):
    """All P pairs of rows that were ranked for the same prompt."""

    better: Tensor  # (P,) row numbers; in a tie, the row that comes first
    worse: Tensor  # (P,) row numbers
    tie: Tensor  # (P,) bool

    def difference(self, x: Tensor) -> Tensor:
        """x of the better row minus x of the worse row.  x (B,) → (P,)"""
        return x[self.better] - x[self.worse]


def rankings(group: Tensor, rank: Tensor) -> Tensor:
    """The row numbers of each group, best first, (G, K ≥ 1); −1 is padding. Rows of rank −1 are left out.

    Args: group, rank (B,) int.
    """
    rows = (rank >= 0).nonzero()[:, 0]
    rows = rows[rank[rows].argsort(stable=True)]
    rows = rows[group[rows].argsort(stable=True)]
    sizes = group[rows].unique_consecutive(return_counts=True)[1]
    place = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    width = int(sizes.max()) if len(sizes) else 1
    table = rows.new_full((len(sizes), width), -1)
    table[torch.arange(len(sizes), device=rows.device).repeat_interleave(sizes), place] = rows
    return table


def pairs(group: Tensor, rank: Tensor) -> Pairs:
    """All C(K, 2) pairs of the K ranked rows of each group.  group, rank (B,) int."""
    table = rankings(group, rank)
    first, second = torch.triu_indices(table.shape[1], table.shape[1], 1, device=table.device)
    better, worse = table[:, first], table[:, second]  # (G, C(K, 2)); padding comes last, so it is never in `better`
    present = worse >= 0
    better, worse = better[present], worse[present]
    return Pairs(better, worse, rank[better] == rank[worse])


def bradley_terry_loss(difference: Tensor, tie: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Bradley-Terry loss −log σ(d − m) of each pair, 0 for ties.

    Sources: Bradley & Terry 1952; for the margin m, eq. 2 of https://arxiv.org/abs/2307.09288.

    Args: difference (P,): d, better minus worse row; tie (P,) bool; margin (P,) or a number: m.  Returns (P,).
    """
    check_shapes(1, difference=difference, tie=tie)
    if isinstance(margin, Tensor):
        check_shapes(1, difference=difference, margin=margin)
    return torch.where(tie, 0, -F.logsigmoid(difference - margin))


def rao_kupper_log_probs(difference: Tensor, log_theta: Tensor | float) -> Tensor:
    """Rao-Kupper log-probabilities of (win, tie, lose), 1967, with θ = e^a ≥ 1.  difference (P,) → (P, 3)

    P(win) = σ(d − a), P(lose) = σ(−d − a), P(tie) = (θ² − 1) σ(d − a) σ(−d − a).  θ = 1 is Bradley-Terry.
    """
    a = torch.as_tensor(log_theta, dtype=difference.dtype, device=difference.device)
    win, lose = F.logsigmoid(difference - a), F.logsigmoid(-difference - a)
    return torch.stack([win, 2 * a + torch.log(-torch.expm1(-2 * a)) + win + lose, lose], -1)


def davidson_log_probs(difference: Tensor, log_nu: Tensor | float) -> Tensor:
    """Davidson log-probabilities of (win, tie, lose), 1970, with ν ≥ 0.  difference (P,) → (P, 3)

    P(win) = exp(d/2) / Z, P(tie) = 2ν / Z, P(lose) = exp(−d/2) / Z.  ν = 0 (log ν = −∞) is Bradley-Terry.
    """
    tie = torch.as_tensor(log_nu, dtype=difference.dtype, device=difference.device) + math.log(2)
    logits = torch.stack([difference / 2, tie.expand_as(difference), -difference / 2], -1)
    return logits - logits.logsumexp(-1, keepdim=True)


def outcome_loss(log_probs: Tensor, tie: Tensor) -> Tensor:
    """Negative log-likelihood of each pair's outcome, which is a win of `better` or a tie.

    Args: log_probs (P, 3) of (win, tie, lose); tie (P,) bool.  Returns (P,).
    """
    check_shapes(1, tie=tie, pairs=log_probs[:, 0])
    return -torch.where(tie, log_probs[:, 1], log_probs[:, 0])


def plackett_luce_loss(scores: Tensor, group: Tensor, rank: Tensor) -> Tensor:
    """Plackett-Luce loss: −log P of each group's ranking (Plackett 1975, Luce 1959), with ties.

    Tied rows form a block. P is a product over the blocks, best first. Each factor is the probability that exactly the
    rows of this block come next, summed over their possible orders (see `block_log_probs`). Without ties, P = Π_i
    exp(s_i) / Σ exp(s_j) over the j not before i.

    Args: scores (B,); group, rank (B,) int, rows of rank −1 are left out.  Returns (G,), 0 for a group in which all
        rows are tied.
    """
    check_shapes(1, scores=scores, group=group, rank=rank)
    table = rankings(group, rank)
    present, rows = table >= 0, table.clamp(min=0)
    s, ranks = scores[rows], torch.where(present, rank[rows], torch.iinfo(rank.dtype).max)  # (G, K)
    tied = (ranks[:, :, None] == ranks[:, None, :]) & present[:, None, :]  # (G, K, K)
    later = (ranks[:, :, None] < ranks[:, None, :]) & present[:, None, :]
    place = torch.arange(table.shape[1], device=table.device)
    starts = present & ~(tied & (place < place[:, None])).any(2)  # the first row of each block
    followed = later.any(2)
    # log Σ over later rows; −∞ after the last block, computed so that the gradient has no 0 · ∞
    after = torch.where(later | ~followed[..., None], s[:, None, :], -torch.inf).logsumexp(2)
    after = torch.where(followed, after, -torch.inf)
    sizes = torch.where(starts, tied.sum(2), 0)
    log_prob = scores.new_zeros(len(table)) + scores.sum() * 0
    for size in sizes.unique().tolist():
        if size:
            of, start = (sizes == size).nonzero().T
            block = s[of[:, None], start[:, None] + place[:size]]
            log_prob = log_prob.index_add(0, of, block_log_probs(block, after[of, start]))
    return -log_prob


def block_log_probs(block: Tensor, after: Tensor) -> Tensor:
    """Log-probability that the m tied rows of a block come next, in any order.  block (N, m), after (N,) → (N,)

    The probability is the sum over permutations π of Π_l exp(s_π(l)) / (A + Σ exp(s_π(k)) over k ≥ l), A = exp(after).
    This is the probability that m exponential times of rates r_l = exp(s_l) all end before one of rate A,
    ∫ A exp(−A t) Π_l (1 − exp(−r_l t)) dt (DeLong, Guirguis & So 1994). The integral uses the trapezoid rule over
    log t. Its integrand is log-concave with a width of about 1/√(m + 1), so that the error is at the level of float
    precision.
    Args: after: log Σ e^s over the rows that come later. It is −∞ if no row comes later, and then P = 1.
    """
    m = block.shape[1]
    if m == 1:
        return (block - torch.logaddexp(block, after[:, None])).sum(1)
    last = after == -torch.inf
    after = torch.where(last, 0, after)
    step = min(0.2, 0.5 / math.sqrt(m + 1))
    # x = log(A t). The mode is in [0, log(m + 1)]; the slope below is at least 1, the decay above doubly exponential.
    x = torch.arange(-25.0, math.log(m + 1) + 4, step, device=block.device, dtype=block.dtype)
    log_prob = x - x.exp()
    for s in (block - after[:, None]).unbind(1):
        log_prob = log_prob + _log_ended(s[:, None] + x)
    return torch.where(last, 0, (log_prob.logsumexp(1) + math.log(step)))


def _log_ended(y: Tensor) -> Tensor:
    """log(1 − e^{−e^y}), without overflow and with a finite gradient."""
    small = y.clamp(max=-7)
    z = y.clamp(-7, 5).exp()
    return torch.where(y < -7, small - small.exp() / 2, torch.log(-torch.expm1(-z)))
