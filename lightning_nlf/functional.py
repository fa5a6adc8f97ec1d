"""Maths shared by several objectives. Tensors in, tensors out; imports torch only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from lightning_nlf.batch import Batch
from lightning_nlf.numbers import NonNegative, Steps


def masked_mean(x: Tensor, mask: Tensor, total: Tensor | None = None) -> Tensor:
    """Σ x[mask] / total: a mean over tokens that does not depend on how rows were cut.

    Args: x (B, T); mask (B, T) bool; total () as stamped by the loader, else the True steps of `mask`.
    Padding may hold anything, NaN too: it is selected away, not multiplied by 0.
    """
    count = mask.sum() if total is None else total
    return torch.where(mask, x, 0).sum() / torch.where(count > 0, count, 1)


def stamp_totals(batches: list[Batch], totals: dict[str, Tensor], parts: int) -> list[Batch]:
    """The micro-batches of one optimizer step, each with `totals / parts`.

    Lightning averages over micro-batches and DDP over ranks, `parts` in all; dividing each part's sum by the
    *mean* count per part makes that average the mean over all tokens.
    Args: totals: True steps of each mask, summed over all parts and ranks; parts: micro-batches × ranks.
    """
    return [replace(batch, totals={name: total / parts for name, total in totals.items()}) for batch in batches]


def row_counts(batch: Batch) -> dict[str, Tensor]:
    """What a term may be a mean over, by row, each (B,): True steps of each mask, and the row's share of comparisons.

    Masks: `mask`, `expert_mask`, `injected`, and each boolean `extra`. Comparisons: those of `comparison_shares`, 0
    without ranks.
    """
    expert = torch.zeros_like(batch.mask) if batch.expert_mask is None else batch.expert_mask
    masks = {"mask": batch.mask, "expert_mask": expert, "injected": batch.valid & ~batch.mask}
    flags = {name: x for name, x in batch.extra.items() if x.dtype == torch.bool and x.ndim < 3}
    masks |= {name: x if x.ndim == 2 else x[:, None] for name, x in flags.items()}
    unranked = batch.valid.new_full((len(batch),), -1, dtype=torch.long)
    group, rank = (unranked if x is None else x for x in (batch.group, batch.rank))
    return {name: mask.sum(1) for name, mask in masks.items()} | comparison_shares(group, rank)


def comparison_shares(group: Tensor, rank: Tensor) -> dict[str, Tensor]:
    """Each row's share of what the ranked rows of its group are compared in, each (B,); a group's shares sum to it.

    `pairs`: C(K, 2); `strict_pairs`: those that are no tie; `rankings`: 1 where not all of them are tied.
    Args: group, rank (B,) int; rank −1 takes no part.
    """
    ranked = rank >= 0
    groups, of = group[ranked].unique(return_inverse=True)
    sizes = of.bincount(minlength=len(groups))[of].float()  # of each row's group
    levels, level = rank[ranked].unique(return_inverse=True)
    _, block, ties = (of * len(levels) + level).unique(return_inverse=True, return_counts=True)
    beaten = sizes - ties[block]  # those that stand above or below, not beside
    shares = {"pairs": (sizes - 1) / 2, "strict_pairs": beaten / 2, "rankings": (beaten > 0) / sizes}
    nothing = torch.zeros(rank.shape, device=rank.device)
    return {name: nothing.masked_scatter(ranked, share) for name, share in shares.items()}


def reverse_recurrence(add: Tensor, factor: Tensor) -> Tensor:
    """y_t = add_t + factor_t · y_{t+1} with y_T = 0, for all t at once.

    Recursive doubling (Hillis & Steele 1986): log₂ T rounds instead of T; exact for any factors.
    Args: add, factor (B, T).  Returns (B, T).
    """
    y, reach, step = add, factor, 1
    while step < y.shape[1]:
        y = torch.cat([y[:, :-step] + reach[:, :-step] * y[:, step:], y[:, -step:]], 1)
        reach = torch.cat([reach[:, :-step] * reach[:, step:], torch.zeros_like(reach[:, -step:])], 1)
        step *= 2
    return y


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


def gae(
    rewards: Tensor,
    values: Tensor,
    bootstrap: Tensor,
    valid: Tensor,
    gamma: float,
    lam: float,
    cut: Tensor | None = None,
) -> Tensor:
    """Generalised advantages, eq. 16 of https://arxiv.org/abs/1506.02438, over valid steps only.

    A_t = δ_t + γλ A_{t+1},  δ_t = r_t + γ V_{t+1} − V_t,  V_T = bootstrap

    Args:
        rewards, values, valid: (B, T); bootstrap: (B,), 0 where the episode terminated.
        cut: (B, T) bool, steps whose return ends with the next V instead of running on.
    Returns: (B, T), 0 where `valid` is False. With values = 0 and lam = 1 it is the discounted reward-to-go.
    """
    delta = torch.where(valid, rewards + gamma * next_valid(values, valid, bootstrap) - values, 0)
    factor = torch.where(valid, gamma * lam, 1.0).to(delta.dtype)
    if cut is not None:
        factor = torch.where(cut, 0.0, factor)
    return torch.where(valid, reverse_recurrence(delta, factor), 0)


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


def episode_gae(
    batch: Batch, values: Tensor, bootstrap: Tensor, gamma: float, lam: float, cut: Tensor | None = None
) -> Tensor:
    """`gae` of the batch's rewards; where a row is a part of an episode, it runs on into the next part.

    The rows of one `extra["episode"]` are laid behind each other in the order of `extra["part"]`, valid steps only:
    V of a part's first decision is what the last step of the part before is followed by.
    Args: values, cut (B, T); bootstrap (B,), of which each episode's last row counts.  Returns (B, T).
    """
    assert batch.rewards is not None
    if "episode" not in batch.extra:
        return gae(batch.rewards, values, bootstrap, batch.valid, gamma, lam, cut)
    order = batch.extra["part"].argsort(stable=True)
    order = order[batch.extra["episode"][order].argsort(stable=True)]
    _, of, rows = batch.extra["episode"][order].unique(return_inverse=True, return_counts=True)
    valid = batch.valid[order]
    steps = valid.sum(1)
    behind = steps.cumsum(0) - steps  # of all rows before
    first = rows.cumsum(0) - rows  # row of each episode
    column = (behind - behind[first][of])[:, None] + valid.cumsum(1) - 1
    width = int(torch.zeros_like(rows).index_add(0, of, steps).max())
    place = (of[:, None] * width + column)[valid]  # (N,) of each valid step in the long rows

    def laid(x: Tensor) -> Tensor:
        """x (B, T) → (episodes, width)"""
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


def takeover_cuts(mask: Tensor, valid: Tensor) -> Tensor:
    """(B, T) bool: learner's steps that are followed by somebody else's."""
    last = torch.ones_like(mask[:, 0])  # the end of a row is no take-over
    return mask & ~next_valid(mask, valid, last)


def distribution_of(params: dict[str, Tensor]) -> Distribution:
    """The expert's distribution from `Batch.expert_params`: a Gaussian or a categorical, by the names it has.

    Raises:
        ValueError: a Gaussian with σ = 0, which is a point mass and has no density to compare.
    """
    if "logits" in params:
        return Categorical(logits=params["logits"], validate_args=False)
    if not bool((params["std"] > 0).all()):
        raise ValueError("the expert is deterministic (std = 0): only its actions can be imitated (divergence: nll)")
    return Independent(Normal(params["mean"], params["std"], validate_args=False), 1, validate_args=False)


def params_of(distribution: Distribution) -> dict[str, Tensor]:
    """What `distribution_of` is made from; each of the batch shape and one dimension more.

    Raises:
        ValueError: neither a Gaussian nor a categorical.
    """
    if isinstance(distribution, Categorical):
        return {"logits": distribution.logits}
    if isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal):
        return {"mean": distribution.base_dist.loc, "std": distribution.base_dist.scale}
    raise ValueError(f"an expert is a Gaussian or a categorical, not a {type(distribution).__name__}")


@dataclass(frozen=True)
class Schedule:
    """A number that moves with experience: c(t) for t steps decided so far (environment steps, or tokens)."""

    start: NonNegative

    def __call__(self, steps: float) -> float:
        return self.start


@dataclass(frozen=True)
class Constant(Schedule):
    """c(t) = start."""


@dataclass(frozen=True)
class Linear(Schedule):
    """From `start` to `end` in a straight line over the first `over` steps, then `end`."""

    end: NonNegative = 0.0
    over: Steps = 10_000

    def __post_init__(self) -> None:
        if self.over <= 0:
            raise ValueError(f"over is {self.over}: give the number of steps, above 0")

    def __call__(self, steps: float) -> float:
        return self.start + (self.end - self.start) * min(steps / self.over, 1.0)


@dataclass(frozen=True)
class Exponential(Schedule):
    """c(t) = start · ½^(t / half_life)."""

    half_life: Steps = 10_000

    def __post_init__(self) -> None:
        if self.half_life <= 0:
            raise ValueError(f"half_life is {self.half_life}: give the number of steps, above 0")

    def __call__(self, steps: float) -> float:
        return self.start * 0.5 ** (steps / self.half_life)


def scheduled(weight: float | Schedule, steps: float) -> float:
    """The weight after `steps`: a plain number stays."""
    return weight(steps) if isinstance(weight, Schedule) else weight
