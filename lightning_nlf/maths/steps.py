"""Operations on the steps of rows: next and last valid step, sums over a row, and sums over the rows of an episode."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nlf.batch import Batch


def next_valid(x: Tensor, valid: Tensor, last: Tensor) -> Tensor:
    """x at the next valid step, or `last` if there is none.  x, valid (B, T), last (B,) → (B, T)."""
    width = x.shape[1]
    steps = torch.arange(width, device=x.device).expand_as(valid)
    columns = torch.where(valid, steps, width)
    following = columns.flip(1).cummin(1).values.flip(1)  # this or the next valid step
    after = torch.cat([following[:, 1:], torch.full_like(following[:, :1], width)], 1)
    return torch.cat([x, last[:, None].to(x.dtype)], 1).gather(1, after)


def with_final_obs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Append `final_obs` after each row's last valid step.

    Returns obs (B, T + 1, *obs), and the place of `final_obs`, (B, T + 1) bool.

    A recurrent network thus reads the whole row before `final_obs`.
    """
    assert batch.final_obs is not None
    width = batch.valid.shape[1]
    steps = torch.arange(1, width + 1, device=batch.valid.device)
    ends = (batch.valid * steps).max(1).values  # (B,)
    rows = torch.arange(len(ends), device=ends.device)
    obs = torch.cat([batch.obs, torch.zeros_like(batch.obs[:, :1])], 1)
    obs[rows, ends] = batch.final_obs
    where = torch.zeros(len(ends), width + 1, dtype=torch.bool, device=ends.device)
    where[rows, ends] = True
    return obs, where


def after_actions(batch: Batch, steps: Tensor) -> tuple[Tensor, Tensor]:
    """obs with `final_obs` appended, (B, T + 1, *obs), and the places after the actions at `steps`, (B, T + 1) bool.

    A reward model reads the reward of an action after that action: after the last token of a reply, or the end of a
        step.
    Args: steps (B, T) bool, a subset of `valid`.
    """
    obs, _ = with_final_obs(batch)
    return obs, torch.cat([torch.zeros_like(steps[:, :1]), steps], 1)


def last_valid(valid: Tensor) -> Tensor:
    """(B, T) bool: the last valid step of each row; all False in a row without a valid step."""
    later = valid.flip(1).cumsum(1).flip(1)
    return valid & (later == 1)


def row_sums(x: Tensor, mask: Tensor) -> Tensor:
    """Σ x over the True steps of each row, such as a reply's log-probability.  x, mask (B, T) → (B,)"""
    return torch.where(mask, x, 0).sum(1)


def best_rows(score: Tensor, group: Tensor) -> Tensor:
    """Row number of the highest score in each group, in the order of group numbers. The first row wins a tie.

    Args: score (B,); group (B,) int.  Returns (G,) int.
    """
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = group[order].unique_consecutive(return_counts=True)[1]
    return order[sizes.cumsum(0) - sizes]


def followed(batch: Batch) -> Tensor:
    """(B,) bool: rows with a later row of the same episode, by `extra["episode"]` and `extra["part"]` (B,)."""
    if "episode" not in batch.extra:
        return torch.zeros_like(batch.valid[:, 0])
    part = batch.extra["part"]
    of = batch.extra["episode"].unique(return_inverse=True)[1]
    return part < torch.zeros_like(part).scatter_reduce(0, of, part, "amax")[of]


def episode_sums(x: Tensor, batch: Batch) -> Tensor:
    """x (B,) summed over the rows of each episode, (E,). Without `extra["episode"]` each row is an episode."""
    if "episode" not in batch.extra:
        return x
    names, of = batch.extra["episode"].unique(return_inverse=True)
    return x.new_zeros(len(names)).index_add(0, of, x)


def on_every_row(x: Tensor, batch: Batch) -> Tensor:
    """x (B,) summed over the rows of each episode, with the sum repeated on every row of the episode, (B,)."""
    if "episode" not in batch.extra:
        return x
    return episode_sums(x, batch)[batch.extra["episode"].unique(return_inverse=True)[1]]


def takeover_cuts(mask: Tensor, valid: Tensor) -> Tensor:
    """(B, T) bool: the learner's steps that are followed by an expert's step."""
    last = torch.ones_like(mask[:, 0])  # the end of a row is not a take-over
    return mask & ~next_valid(mask, valid, last)
