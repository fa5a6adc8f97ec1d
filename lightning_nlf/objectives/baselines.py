"""Baselines of a policy gradient: batch mean, group mean (GRPO) and leave-one-out (RLOO).

Also scaling by the group's standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_nlf.batch import Batch

Sum = Callable[[Tensor], Tensor]


def one_process(x: Tensor) -> Tensor:
    """Sum over ranks in a single process: x itself."""
    return x


def moments(x: Tensor, mask: Tensor, over_ranks: Sum = one_process) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance over the True steps of `mask`, on all ranks.  x, mask (B, T) → (), ()"""
    count = over_ranks(mask.sum()).clamp(min=1)
    mean = over_ranks(torch.where(mask, x, 0).sum()) / count
    return mean, over_ranks(torch.where(mask, (x - mean) ** 2, 0).sum()) / count


def no_baseline(returns: Tensor, batch: Batch, over_ranks: Sum = one_process) -> Tensor:
    return torch.zeros_like(returns)


def batch_mean(returns: Tensor, batch: Batch, over_ranks: Sum = one_process) -> Tensor:
    """Mean return of the learner's steps, over all ranks.  (B, T)"""
    total = over_ranks(torch.where(batch.mask, returns, 0).sum())
    return (total / over_ranks(batch.mask.sum()).clamp(min=1)).expand_as(returns)


def group_mean(returns: Tensor, batch: Batch, over_ranks: Sum = one_process) -> Tensor:
    """Mean return of the learner's rows in the group (GRPO, https://arxiv.org/abs/2402.03300).  (B, T)"""
    members, row_means = _groups(returns, batch)
    mean = members @ row_means / members.sum(1).clamp(min=1)
    return mean[:, None].to(returns.dtype).expand_as(returns)


def leave_one_out(returns: Tensor, batch: Batch, over_ranks: Sum = one_process) -> Tensor:
    """Mean return of the other rows of the group (RLOO, https://arxiv.org/abs/2402.14740).  (B, T)

    The baseline is 0 for a row that is alone in its group.
    """
    members, row_means = _groups(returns, batch)
    mean = (members @ row_means - row_means) / (members.sum(1) - 1).clamp(min=1)
    return mean[:, None].to(returns.dtype).expand_as(returns)


def shared_group_mean(returns: Tensor, batch: Batch, over_ranks: Sum = one_process) -> Tensor:
    """Mean return of all rows of the group, both the learner's and the experts'.  (B, T)

    The baseline of LUFFY's mixed-policy GRPO (https://arxiv.org/abs/2504.14945): an expert's reply raises the baseline
    of the learner's replies.
    """
    members, row_means = _groups(returns, batch, shared=True)
    mean = members @ row_means / members.sum(1).clamp(min=1)
    return mean[:, None].to(returns.dtype).expand_as(returns)


def group_scale(returns: Tensor, batch: Batch, shared: bool = False) -> Tensor:
    """1 / standard deviation of the group's returns (GRPO, eq. 3.2 of https://arxiv.org/abs/2402.03300).  (B, 1)

    The scale is 1 if all returns are equal. Without this scale, GRPO becomes Dr. GRPO,
    https://arxiv.org/abs/2503.20783.
    Args: shared: use the returns of all rows, including the experts' rows, instead of only the learner's rows.
    """
    members, row_means = _groups(returns, batch, shared)
    count = members.sum(1).clamp(min=1)
    variance = members @ (row_means - members @ row_means / count) ** 2 / count  # a group's rows share its mean
    return torch.where(variance > 0, torch.rsqrt(variance + 1e-8), 1)[:, None].to(returns.dtype)


def _groups(returns: Tensor, batch: Batch, shared: bool = False) -> tuple[Tensor, Tensor]:
    """Which of the learner's rows are in each row's group, (B, B) of 0 and 1, and the mean return of each row, (B,).

    With `shared`, the groups contain all rows with a valid step, and the return of a row is its return at the first
    valid step. Uses float64, so that the mean of equal returns is exact. A group of equal returns then has no gradient.
    """
    if batch.group is None:
        raise ValueError("baseline: a group baseline needs `group` in the batch, with several replies to each prompt")
    if shared:
        refuse_unscored(batch, batch.valid.any(1))
    steps = batch.valid & (batch.valid.cumsum(1) == 1) if shared else batch.mask
    members = (batch.group[:, None] == batch.group[None, :]) & steps.any(1)[None, :]
    row_means = torch.where(steps, returns, 0).sum(1, dtype=torch.float64) / steps.sum(1).clamp(min=1)
    return members.double(), row_means


def refuse_unscored(batch: Batch, rows: Tensor) -> None:
    """Refuse an unknown reward. Raises ValueError: the `score` of one of the `rows` (B,) bool is NaN (unknown)."""
    if batch.score is not None and (unknown := rows & batch.score.isnan()).any():
        raise ValueError(
            f"score: row {int(unknown.nonzero()[0])} has no score, so its reward is unknown; give it a score "
            "(`expected_score` in a feedback file for expected responses), or leave such rows out"
        )


BASELINES: dict[str, Callable[[Tensor, Batch, Sum], Tensor]] = {
    "none": no_baseline,
    "batch_mean": batch_mean,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "shared_group_mean": shared_group_mean,
}
