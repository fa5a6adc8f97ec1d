"""Discounted returns and generalised advantage estimation (GAE), computed for all steps in parallel."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import next_valid


def reverse_recurrence(add: Tensor, factor: Tensor) -> Tensor:
    """Solve y_t = add_t + factor_t · y_{t+1} with y_T = 0, for all t in parallel.

    Recursive doubling (Hillis & Steele 1986) takes log₂ T rounds instead of T, and is exact for any factors.
    Args: add, factor (B, T).  Returns (B, T).
    """
    y, reach, step = add, factor, 1
    while step < y.shape[1]:
        y = torch.cat([y[:, :-step] + reach[:, :-step] * y[:, step:], y[:, -step:]], 1)
        reach = torch.cat([reach[:, :-step] * reach[:, step:], torch.zeros_like(reach[:, -step:])], 1)
        step *= 2
    return y


def gae(
    rewards: Tensor,
    values: Tensor,
    bootstrap: Tensor,
    valid: Tensor,
    gamma: float,
    lam: float,
    cut: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimation (GAE), eq. 16 of https://arxiv.org/abs/1506.02438, over valid steps only.

    A_t = δ_t + γλ A_{t+1},  δ_t = r_t + γ V_{t+1} − V_t,  V_T = bootstrap

    Args:
        rewards, values, valid: (B, T); bootstrap: (B,), 0 for terminated episodes.
        cut: (B, T) bool, steps at which the return ends: V of the next step stands for all later rewards.
    Returns: (B, T), 0 where `valid` is False. With values = 0 and lam = 1, the result is the discounted reward-to-go.
    """
    delta = torch.where(valid, rewards + gamma * next_valid(values, valid, bootstrap) - values, 0)
    factor = torch.where(valid, gamma * lam, 1.0).to(delta.dtype)
    if cut is not None:
        factor = torch.where(cut, 0.0, factor)
    return torch.where(valid, reverse_recurrence(delta, factor), 0)


def episode_gae(
    batch: Batch, values: Tensor, bootstrap: Tensor, gamma: float, lam: float, cut: Tensor | None = None
) -> Tensor:
    """GAE for episodes that may be split into several rows.

    The recurrence of `gae` continues from one row into the next.

    The valid steps of rows with the same `extra["episode"]` are joined in the order of `extra["part"]`. The last step
    of a row is followed by V of the first step of the next row.
    Args: values, cut (B, T); bootstrap (B,): only the value of each episode's last row is used.  Returns (B, T).
    """
    assert batch.rewards is not None
    if "episode" not in batch.extra:
        return gae(batch.rewards, values, bootstrap, batch.valid, gamma, lam, cut)
    order = batch.extra["part"].argsort(stable=True)
    order = order[batch.extra["episode"][order].argsort(stable=True)]
    _, of, rows = batch.extra["episode"][order].unique(return_inverse=True, return_counts=True)
    valid = batch.valid[order]
    steps = valid.sum(1)
    offsets = steps.cumsum(0) - steps  # number of steps in all earlier rows
    first = rows.cumsum(0) - rows  # row of each episode
    column = (offsets - offsets[first][of])[:, None] + valid.cumsum(1) - 1
    width = int(torch.zeros_like(rows).index_add(0, of, steps).max())
    place = (of[:, None] * width + column)[valid]  # (N,) index of each valid step in the joined rows

    def laid(x: Tensor) -> Tensor:
        """Join the rows of each episode: x (B, T) → (episodes, width)"""
        return x.new_zeros(len(rows) * width).scatter(0, place, x[order][valid]).view(-1, width)

    long = gae(
        laid(batch.rewards),
        laid(values),
        bootstrap[order][first + rows - 1],
        laid(batch.valid),
        gamma,
        lam,
        None if cut is None else laid(cut),
    )
    back = torch.zeros_like(values)
    back[order] = torch.zeros_like(values).masked_scatter(valid, long.view(-1)[place])
    return back
