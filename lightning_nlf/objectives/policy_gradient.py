"""Policy gradient: REINFORCE with its baselines, and the clipped surrogate of PPO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import episode_gae, masked_mean, row_counts, takeover_cuts
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import Discount, NonNegative, Positive
from lightning_nlf.objective import Evaluation, Objective, Terms


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor, mask: Tensor, total: Tensor | None = None) -> Tensor:
    """−E[log π(a|s) A], Williams 1992; its gradient is that of the return.

    Args: log_probs, advantages, mask (B, T).  Returns ().
    """
    return -masked_mean(log_probs * advantages, mask, total)


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float, total: Tensor | None = None
) -> Tensor:
    """−E[min(ρA, clip(ρ, 1−ε, 1+ε)A)], ρ = π(a|s) / π_old(a|s): eq. 7 of https://arxiv.org/abs/1707.06347.

    Args: log_probs, old_log_probs, advantages, mask (B, T); clip: ε.  Returns ().
    """
    ratio = importance_ratio(log_probs, old_log_probs, mask)
    return -masked_mean(torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages), mask, total)


def importance_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """π / b where `mask`, 1 elsewhere: masked before exp, so that padding cannot overflow.  (B, T)"""
    return torch.where(mask, log_probs - old_log_probs, 0).exp()


def surrogate_notes(
    log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, clip: float, total: Tensor | None = None
) -> Terms:
    """Share of clipped ratios ρ, KL(old ‖ new) by k3 = ρ − 1 − log ρ, the mean of ρ and its variance E[(ρ − 1)²].

    Args: log_probs, old_log_probs, mask (B, T); clip: ε.  Returns four numbers, each ().
    """
    ratio = importance_ratio(log_probs, old_log_probs, mask)
    return {
        "clip_fraction": masked_mean(((ratio - 1).abs() > clip).to(ratio.dtype), mask, total),
        "approx_kl": masked_mean(ratio - 1 - ratio.log(), mask, total),
        "ratio_mean": masked_mean(ratio, mask, total),
        "ratio_variance": masked_mean((ratio - 1) ** 2, mask, total),
    }


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
    """The mean return of all the group's rows, whoever decided in them.  (B, T)

    Of LUFFY's mixed-policy GRPO (https://arxiv.org/abs/2504.14945): an expert's reply raises the bar for the learner's.
    """
    same, own = _groups(returns, batch, shared=True)
    mean = same @ own / same.sum(1).clamp(min=1)
    return mean[:, None].to(returns.dtype).expand_as(returns)


def group_scale(returns: Tensor, batch: Batch, shared: bool = False) -> Tensor:
    """1 / the standard deviation of the group's returns (GRPO, eq. 3.2 of https://arxiv.org/abs/2402.03300).  (B, 1)

    1 where they are all the same; without it the objective is that of Dr. GRPO, https://arxiv.org/abs/2503.20783.
    Args: shared: of all rows, whoever decided in them, instead of the learner's.
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


class PolicyGradientObjective(Objective):
    """Policy gradient on the learner's own steps (`mask`).

    Without a critic a truncated row counts as ended, a bias against whatever would have come after.

    Args:
        gamma: discount, over valid steps.
        baseline: subtracted from the reward-to-go. Of a group the learner's rows, or with `shared_group_mean` those
            of experts too. The whitening below takes `batch_mean` off as well.
        clip: PPO's ε, for several passes over one collection; without it the plain gradient.
        advantage_scale: `group_std` divides by the deviation of the group's returns, as GRPO does; the whitening below
            would come on top.
        normalize_advantages: to mean 0 and variance 1 over the steps learned from, of the collection, on all ranks.
        entropy_weight: bonus for entropy.
        cut_at_takeover: the learner's return ends where the expert takes over, with V there if there is one.
    """

    def __init__(
        self,
        gamma: Discount = 0.99,
        baseline: Literal["none", "batch_mean", "group_mean", "leave_one_out", "shared_group_mean"] = "none",
        clip: Positive | None = None,
        advantage_scale: Literal["none", "group_std"] = "none",
        normalize_advantages: bool = True,
        entropy_weight: NonNegative = 0.0,
        cut_at_takeover: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if cut_at_takeover and baseline == "shared_group_mean":
            raise ValueError(
                "cut_at_takeover: a return that is cut is none of a whole row's, which shared_group_mean needs"
            )
        self.gamma, self.baseline, self.clip = gamma, baseline, clip
        self.advantage_scale = advantage_scale
        self.normalize_advantages, self.entropy_weight = normalize_advantages, entropy_weight
        self.cut_at_takeover = cut_at_takeover

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        batch = super().prepare(batch)
        if batch.advantages is None:
            if batch.rewards is None:
                raise ValueError("the batch has no rewards, and policy gradient learns from nothing else")
            zero = torch.zeros_like(batch.rewards)  # V = 0 and λ = 1: the reward-to-go
            returns = episode_gae(batch, zero, zero[:, 0], self.gamma, 1.0, self.cuts(batch))
            baseline = BASELINES[self.baseline](returns, batch, self.sum_over_ranks)
            advantages = returns - baseline
            if self.advantage_scale == "group_std":
                advantages = advantages * group_scale(returns, batch, self.baseline == "shared_group_mean")
            batch = replace(batch, returns=returns, advantages=advantages)
        return replace(batch, advantages=self.whiten(batch)) if self.normalize_advantages else batch

    def cuts(self, batch: Batch) -> Tensor | None:
        return takeover_cuts(batch.mask, batch.valid) if self.cut_at_takeover else None

    def learned(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps that the gradient runs over."""
        return batch.mask

    def whiten(self, batch: Batch) -> Tensor:
        """Advantages with mean 0 and (biased) variance 1 over the learned steps of all ranks.  (B, T)"""
        assert batch.advantages is not None
        mean, variance = moments(batch.advantages, self.learned(batch), self.sum_over_ranks)
        return torch.where(batch.valid, (batch.advantages - mean) * torch.rsqrt(variance + 1e-8), 0)

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        total = batch.totals.get("mask")
        notes: Terms = {}
        assert batch.advantages is not None
        if self.clip is None:
            loss = policy_gradient_loss(now.log_probs, batch.advantages, batch.mask, total)
        else:
            if batch.log_probs is None:
                raise ValueError("clip: the batch has no log_probs of the policy that acted, so there is no ratio")
            loss = clipped_policy_loss(now.log_probs, batch.log_probs, batch.advantages, batch.mask, self.clip, total)
            notes = surrogate_notes(now.log_probs.detach(), batch.log_probs, batch.mask, self.clip, total)
        now.notes |= notes
        now.over |= dict.fromkeys(("policy", "entropy", *notes), "mask")
        terms = super().terms(batch, now) | {"policy": loss}
        if self.entropy_weight:
            terms["entropy"] = -self.entropy_weight * masked_mean(now.entropy, batch.mask, total)
        return terms


class SummedObjective(Objective):
    """Sums over the steps of an optimizer step where the other terms take means; stands first among the mixins.

    So a long row counts for more than a short one, and an update for more than the one before: Adam, which takes a
    constant factor off, does not take this off. The textbook's REINFORCE, an episode an update, is such a sum.
    """

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        trainer = self._trainer
        parts = 1 if trainer is None else trainer.world_size * trainer.accumulate_grad_batches
        one = batch.mask.new_full((), 1 / parts, dtype=torch.float32)  # what a total of 1 is stamped as
        return super().terms(replace(batch, totals=dict.fromkeys(row_counts(batch), one)), now)


class ReinforcePolicy(PolicyGradientObjective, PolicyModule):
    """REINFORCE with reward-to-go; PPO without a critic when `clip` is set."""
