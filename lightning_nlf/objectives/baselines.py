"""Baselines of a policy gradient: of the batch, of the group, leave-one-out; and the group's scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_nlf.batch import Batch

Sum = Callable[[Tensor], Tensor]


def one_process(x: Tensor) -> Tensor:
    """The sum over ranks where there is one."""
    return x


def moments(x: Tensor, mask: Tensor, over_ranks: Sum = one_process) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance over the True steps of `mask`, on all ranks.  x, mask (B, T) → (), ()"""
    count = over_ranks(mask.sum()).clamp(min=1)
    mean = over_ranks(torch.where(mask, x, 0).sum()) / count
    return mean, over_ranks(torch.where(mask, (x - mean) ** 2, 0).sum()) / count


def no_baseline(returns: Tensor, batch: Batch, over_ranks: Sum = one_process) -> Tensor:
    return torch.zeros_like(returns)


def batch_mean(returns: Tensor, batch: Batch, over_ranks: Sum = one_process) -> Tensor:
    """The mean return of the learner's steps, on all ranks.  (B, T)"""
    total = over_ranks(torch.where(batch.mask, returns, 0).sum())
    return (total / over_ranks(batch.mask.sum()).clamp(min=1)).expand_as(returns)


def group_mean(returns: Tensor, batch: Batch, over_ranks: Sum = one_process) -> Tensor:
    """The mean return of the group's rows, the row itself included (GRPO, https://arxiv.org/abs/2402.03300).  (B, T)"""
    same, own = _groups(returns, batch)
    mean = same @ own / same.sum(1).clamp(min=1)
    return mean[:, None].to(returns.dtype).expand_as(returns)


def leave_one_out(returns: Tensor, batch: Batch, over_ranks: Sum = one_process) -> Tensor:
    """The mean return of the group's *other* rows (RLOO, https://arxiv.org/abs/2402.14740).  (B, T)

    A row alone in its group has no baseline, and so 0.
    """
    same, own = _groups(returns, batch)
    mean = (same @ own - own) / (same.sum(1) - 1).clamp(min=1)
    return mean[:, None].to(returns.dtype).expand_as(returns)


def shared_group_mean(returns: Tensor, batch: Batch, over_ranks: Sum = one_process) -> Tensor:
    """The mean return of all rows of the group, the learner's and the experts'.  (B, T)

    Of LUFFY's mixed-policy GRPO (https://arxiv.org/abs/2504.14945): an expert's reply raises the bar for the learner's.
    """
    same, own = _groups(returns, batch, shared=True)
    mean = same @ own / same.sum(1).clamp(min=1)
    return mean[:, None].to(returns.dtype).expand_as(returns)


def group_scale(returns: Tensor, batch: Batch, shared: bool = False) -> Tensor:
    """1 / the standard deviation of the group's returns (GRPO, eq. 3.2 of https://arxiv.org/abs/2402.03300).  (B, 1)

    1 where they are all the same; without it the objective is that of Dr. GRPO, https://arxiv.org/abs/2503.20783.
    Args: shared: of all rows, the experts' too, instead of the learner's alone.
    """
    same, own = _groups(returns, batch, shared)
    count = same.sum(1).clamp(min=1)
    variance = same @ (own - same @ own / count) ** 2 / count  # a group's rows share its mean
    return torch.where(variance > 0, torch.rsqrt(variance + 1e-8), 1)[:, None].to(returns.dtype)


def _groups(returns: Tensor, batch: Batch, shared: bool = False) -> tuple[Tensor, Tensor]:
    """Which learner's rows share a group, (B, B) of 0 and 1, and each row's mean return, (B,).

    With `shared` all rows with a valid step, and each one's return from the first of them on.
    In float64, where the mean of equal returns is that return: a group without spread must teach nothing.
    """
    if batch.group is None:
        raise ValueError("baseline: a group baseline needs batches with `group`: several replies to one prompt")
    if shared:
        refuse_unscored(batch, batch.valid.any(1))
    steps = batch.valid & (batch.valid.cumsum(1) == 1) if shared else batch.mask
    same = (batch.group[:, None] == batch.group[None, :]) & steps.any(1)[None, :]
    own = torch.where(steps, returns, 0).sum(1, dtype=torch.float64) / steps.sum(1).clamp(min=1)
    return same.double(), own


def refuse_unscored(batch: Batch, rows: Tensor) -> None:
    """Raises ValueError: the `score` of one of the `rows` (B,) bool is not known, NaN, so its rewards mean nothing."""
    if batch.score is not None and (unknown := rows & batch.score.isnan()).any():
        raise ValueError(
            f"score: row {int(unknown.nonzero()[0])} has none, so nobody knows what it earned: give one (in a file of "
            "feedback `expected_score` is that of expected responses), or leave such rows out"
        )


BASELINES: dict[str, Callable[[Tensor, Batch, Sum], Tensor]] = {
    "none": no_baseline,
    "batch_mean": batch_mean,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "shared_group_mean": shared_group_mean,
}
