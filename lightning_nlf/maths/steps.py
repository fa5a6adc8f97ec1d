"""Steps of rows: the next valid one, the last one, sums over a row, rows of one episode."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nlf.batch import Batch


def next_valid(x: Tensor, valid: Tensor, last: Tensor) -> Tensor:
    """x at the next valid step; `last` where none follows.  x, valid (B, T), last (B,) → (B, T)."""
    width = x.shape[1]
    steps = torch.arange(width, device=x.device).expand_as(valid)
    own = torch.where(valid, steps, width)
    following = own.flip(1).cummin(1).values.flip(1)  # this or the next valid step
    after = torch.cat([following[:, 1:], torch.full_like(following[:, :1], width)], 1)
    return torch.cat([x, last[:, None].to(x.dtype)], 1).gather(1, after)


def with_final_obs(batch: Batch) -> tuple[Tensor, Tensor]:
    """obs with `final_obs` right behind each row's last valid step, (B, T + 1, *obs), and where, (B, T + 1) bool.

    So a recurrent network reads what led there.
    """
    assert batch.final_obs is not None
    width = batch.valid.shape[1]
    steps = torch.arange(1, width + 1, device=batch.valid.device)
    behind = (batch.valid * steps).max(1).values  # (B,)
    rows = torch.arange(len(behind), device=behind.device)
    obs = torch.cat([batch.obs, torch.zeros_like(batch.obs[:, :1])], 1)
    obs[rows, behind] = batch.final_obs
    where = torch.zeros(len(behind), width + 1, dtype=torch.bool, device=behind.device)
    where[rows, behind] = True
    return obs, where


def after_actions(batch: Batch, steps: Tensor) -> tuple[Tensor, Tensor]:
    """obs with `final_obs` behind them, (B, T + 1, *obs), and where the outcome of each of `steps` is seen, (B, T + 1).

    What is said of an action is read behind it: a reply's reward at its last token, a step's at the step's end.
    Args: steps (B, T) bool, a subset of `valid`.
    """
    obs, _ = with_final_obs(batch)
    return obs, torch.cat([torch.zeros_like(steps[:, :1]), steps], 1)


def last_valid(valid: Tensor) -> Tensor:
    """(B, T) bool: each row's last valid step; none in a row without one."""
    later = valid.flip(1).cumsum(1).flip(1)
    return valid & (later == 1)


def row_sums(x: Tensor, mask: Tensor) -> Tensor:
    """Σ x over the True steps of each row: a reply's log-probability from its tokens'.  x, mask (B, T) → (B,)"""
    return torch.where(mask, x, 0).sum(1)


def best_rows(score: Tensor, group: Tensor) -> Tensor:
    """The row of each group with the highest score, the first of equals, in the order of the groups' numbers.

    Args: score (B,); group (B,) int.  Returns (G,) int.
    """
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = group[order].unique_consecutive(return_counts=True)[1]
    return order[sizes.cumsum(0) - sizes]


def followed(batch: Batch) -> Tensor:
    """(B,) bool: rows behind which another of the same episode comes, by `extra` `episode` and `part`, each (B,)."""
    if "episode" not in batch.extra:
        return torch.zeros_like(batch.valid[:, 0])
    part = batch.extra["part"]
    of = batch.extra["episode"].unique(return_inverse=True)[1]
    return part < torch.zeros_like(part).scatter_reduce(0, of, part, "amax")[of]


def episode_sums(x: Tensor, batch: Batch) -> Tensor:
    """x (B,) summed over the rows of each episode, (E,); without `extra["episode"]` each row is one."""
    if "episode" not in batch.extra:
        return x
    names, of = batch.extra["episode"].unique(return_inverse=True)
    return x.new_zeros(len(names)).index_add(0, of, x)


def on_every_row(x: Tensor, batch: Batch) -> Tensor:
    """x (B,) summed over the rows of each episode, the sum on each of them; as `episode_sums`.  (B,)"""
    if "episode" not in batch.extra:
        return x
    return episode_sums(x, batch)[batch.extra["episode"].unique(return_inverse=True)[1]]


def takeover_cuts(mask: Tensor, valid: Tensor) -> Tensor:
    """(B, T) bool: learner's steps that are followed by somebody else's."""
    last = torch.ones_like(mask[:, 0])  # the end of a row is no take-over
    return mask & ~next_valid(mask, valid, last)
