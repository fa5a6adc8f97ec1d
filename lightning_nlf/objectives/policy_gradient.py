"""Policy gradient: REINFORCE with its baselines, and the clipped surrogate of PPO; of tokens or of whole replies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_nlf.batch import Batch, required
from lightning_nlf.compatibility import replaceable
from lightning_nlf.maths.means import check_shapes, mask_named
from lightning_nlf.maths.returns import episode_gae
from lightning_nlf.maths.steps import row_sums, takeover_cuts
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import Discount, NonNegative, Positive
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.objectives.baselines import BASELINES, group_scale, moments

NO_REWARDS = (
    "the batch has no rewards, and policy gradient learns from nothing else: nobody pays, so give the data a reward"
)


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """−log π(a|s) A, Williams 1992; the gradient of its mean is that of the return.

    Args: log_probs, advantages (B, T) of steps, or (B,) of whole replies.  Returns the same shape.
    """
    check_shapes(log_probs.ndim, log_probs=log_probs, advantages=advantages)
    return -log_probs * advantages


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """−min(ρA, clip(ρ, 1−ε, 1+ε)A), ρ = π(a|s) / π_old(a|s): eq. 7 of https://arxiv.org/abs/1707.06347.

    Args: ratio ρ, advantages (B, T) or (B,); clip: ε.  Returns the same shape.
    """
    check_shapes(ratio.ndim, ratio=ratio, advantages=advantages)
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def importance_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """π / b where `mask`, 1 elsewhere: masked before exp, so that padding cannot overflow.  (B, T) or (B,)"""
    check_shapes(mask.ndim, log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    return torch.where(mask, log_probs - old_log_probs, 0).exp()


def ratio_figures(ratio: Tensor, clip: float) -> dict[str, Tensor]:
    """Whether a ratio ρ is clipped, KL(old ‖ new) by k3 = ρ − 1 − log ρ, ρ itself and (ρ − 1)²; all of its shape.

    Their means are the share that is clipped, the KL, the mean ratio and its variance.
    """
    return {
        "clip_fraction": ((ratio - 1).abs() > clip).to(ratio.dtype),
        "approx_kl": ratio - 1 - ratio.log(),
        "ratio_mean": ratio,
        "ratio_variance": (ratio - 1) ** 2,
    }


def first_step(mask: Tensor) -> Tensor:
    """(B, T) bool: each row's first True step; none in a row without one."""
    return mask & (mask.cumsum(1) == 1)


def at_first(x: Tensor, mask: Tensor, where: Tensor) -> Tensor:
    """Σ x over `where` at the first True step of `mask`, 0 elsewhere.  All (B, T)"""
    return torch.where(first_step(mask), row_sums(x, where)[:, None], 0)


def refuse_replies(objective: Objective, name: str) -> None:
    """Raises ValueError: its `decision` is `reply`, and what goes by `name` is about the tokens of a reply."""
    if getattr(objective, "decision", "token") == "reply":
        raise ValueError(f"decision: reply makes one decision of each reply, and {name} is about its single tokens")


class PolicyGradientObjective(Objective):
    """Policy gradient on the learner's own steps: REINFORCE, RLOO, GRPO, or PPO's clipped surrogate.

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
        decision: `reply` makes one decision of each row, language as a bandit (RLOO, https://arxiv.org/abs/2402.14740):
            its log-probability is the sum over the learner's tokens, its reward that of the row, its baseline V of the
            prompt if there is a critic; γ and λ do not matter. Terms are means over replies, and a reply is one step to
            schedules. At γ = 1 the gradient is that of `token` where the reward comes at the end, and equal in the
            mean otherwise.

    Raises:
        ValueError: `cut_at_takeover` with `shared_group_mean`, or one of them with `decision: reply`; at `prepare` a
            batch without rewards.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    policy_over = "mask"  # what the policy term is a mean over
    policy_per: str | None = None  # what its sum is divided by, where that is another count

    def __init__(
        self,
        gamma: Discount = 0.99,
        baseline: Literal["none", "batch_mean", "group_mean", "leave_one_out", "shared_group_mean"] = "none",
        clip: Positive | None = None,
        advantage_scale: Literal["none", "group_std"] = "none",
        normalize_advantages: bool = True,
        entropy_weight: NonNegative = 0.0,
        cut_at_takeover: bool = False,
        decision: Literal["token", "reply"] = "token",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if cut_at_takeover and baseline == "shared_group_mean":
            raise ValueError(
                "cut_at_takeover: a return that is cut is none of a whole row's, which shared_group_mean needs"
            )
        self.gamma, self.clip = gamma, clip
        self.baseline: str = baseline
        self.advantage_scale: str = advantage_scale
        self.normalize_advantages, self.entropy_weight = normalize_advantages, entropy_weight
        self.cut_at_takeover, self.decision = cut_at_takeover, decision
        if cut_at_takeover or baseline == "shared_group_mean":
            refuse_replies(self, "cut_at_takeover" if cut_at_takeover else "shared_group_mean")

    def decisions(self, batch: Batch) -> Tensor:
        return batch.mask.any(1).sum() if self.decision == "reply" else batch.valid.sum()

    def masks(self, batch: Batch) -> Batch:
        """With `decision: reply`: `replies` (B,), and `prompts`, the first step of each (B, T)."""
        if self.decision == "token":
            return batch
        return batch.with_masks(replies=batch.mask.any(1), prompts=first_step(batch.mask))

    @property
    def decided_over(self) -> str:
        """Name of the mask (B, T) of the learner's decisions."""
        return "prompts" if self.decision == "reply" else self.policy_over

    def decided(self, batch: Batch) -> Tensor:
        """(B, T) bool: the learner's decisions."""
        return mask_named(batch, self.decided_over)

    @replaceable
    def learned(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps whose advantages are whitened together."""
        return self.decided(batch)

    def credit(self, batch: Batch) -> Batch:
        """Returns and advantages of the learner's decisions, whitened if `normalize_advantages`."""
        mask = self.decided(batch)
        decisions = batch if mask is batch.mask else replace(batch, mask=mask)
        if self.decision == "reply":
            rewards = required(batch.rewards, NO_REWARDS)
            decisions = replace(
                decisions,
                valid=decisions.mask,
                rewards=at_first(rewards, batch.mask, batch.valid),
                terminated=torch.ones(len(batch), dtype=torch.bool, device=rewards.device),  # nothing follows a reply
            )
        decisions = self.estimate(decisions)
        advantages = self.whiten(decisions) if self.normalize_advantages else decisions.advantages
        return replace(batch, values=decisions.values, returns=decisions.returns, advantages=advantages)

    @replaceable
    def estimate(self, batch: Batch) -> Batch:
        """With returns and advantages: the reward-to-go minus its baseline, unless the batch has advantages."""
        if batch.advantages is not None:
            return batch
        rewards = required(batch.rewards, NO_REWARDS)
        zero = torch.zeros_like(rewards)  # V = 0 and λ = 1: the reward-to-go
        returns = episode_gae(batch, zero, zero[:, 0], self.gamma, 1.0, self.cuts(batch))
        advantages = returns - BASELINES[self.baseline](returns, batch, self.sum_over_ranks)
        if self.advantage_scale == "group_std":
            advantages = advantages * group_scale(returns, batch, self.baseline == "shared_group_mean")
        return replace(batch, returns=returns, advantages=advantages)

    def cuts(self, batch: Batch) -> Tensor | None:
        """(B, T) bool: the steps whose return ends with the next V."""
        return takeover_cuts(batch.mask, batch.valid) if self.cut_at_takeover else None

    def whiten(self, batch: Batch) -> Tensor:
        """Advantages with mean 0 and (biased) variance 1 over the learned steps of all ranks.  (B, T)"""
        assert batch.advantages is not None
        mean, variance = moments(batch.advantages, self.learned(batch), self.sum_over_ranks)
        return torch.where(batch.valid, (batch.advantages - mean) * torch.rsqrt(variance + 1e-8), 0)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        """Raises MissingField: no advantages; with `clip` no log_probs of the policy that acted."""
        advantages = required(batch.advantages, "the batch has no advantages: `prepare` comes first")
        over, reply = self.policy_over, self.decision == "reply"

        def of_decision(x: Tensor) -> Tensor:
            return row_sums(x, batch.mask) if reply else x

        if reply:
            over, advantages = "replies", row_sums(advantages, batch.masks["prompts"])
        log_probs = of_decision(now.log_probs)
        if self.clip is None:
            loss = policy_gradient_loss(log_probs, advantages)
        else:
            old = required(batch.log_probs, "clip: the batch has no log_probs of the policy that acted, so no ratio")
            ratio = importance_ratio(log_probs, of_decision(old), mask_named(batch, over))
            loss = clipped_policy_loss(ratio, advantages, self.clip)
            for name, x in ratio_figures(ratio.detach(), self.clip).items():
                yield Term(name, x, over, logged_only=True)
        yield Term("policy", loss, over, self.policy_per)
        if self.entropy_weight:
            yield Term("entropy", of_decision(now.entropy), over, weight=-self.entropy_weight)


class ReinforcePolicy(PolicyGradientObjective, PolicyModule):
    """REINFORCE with reward-to-go; PPO without a critic when `clip` is set."""
