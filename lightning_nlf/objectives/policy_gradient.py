"""Policy gradient: REINFORCE with baselines, and PPO's clipped surrogate. A decision is a token or a whole reply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_nlf.batch import Batch, required
from lightning_nlf.compatibility import replaceable
from lightning_nlf.maths.importance import truncated_ratio
from lightning_nlf.maths.kl import k3
from lightning_nlf.maths.means import check_shapes, mask_named
from lightning_nlf.maths.returns import episode_gae
from lightning_nlf.maths.steps import row_sums, takeover_cuts
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import Discount, NonNegative, Positive
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.objectives.baselines import BASELINES, group_scale, moments

NO_REWARDS = "the batch has no rewards, which a policy gradient needs; give the data a reward"


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Policy gradient loss −log π(a|s) A (Williams 1992).

    The gradient of its mean estimates the negative gradient of the expected return.

    Args: log_probs, advantages (B, T) of steps, or (B,) of whole replies.  Returns the same shape.
    """
    check_shapes(log_probs.ndim, log_probs=log_probs, advantages=advantages)
    return -log_probs * advantages


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's clipped surrogate −min(ρA, clip(ρ, 1−ε, 1+ε)A), ρ = π(a|s) / π_old(a|s).

    Source: eq. 7 of https://arxiv.org/abs/1707.06347.
    Args: ratio ρ, advantages (B, T) or (B,); clip: ε.  Returns the same shape.
    """
    check_shapes(ratio.ndim, ratio=ratio, advantages=advantages)
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def importance_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Importance ratio π / b at `mask`, 1 elsewhere, (B, T) or (B,).

    Masked before exp, so that padding cannot overflow.
    """
    check_shapes(mask.ndim, log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    return torch.where(mask, log_probs - old_log_probs, 0).exp()


def ratio_figures(ratio: Tensor, clip: float) -> dict[str, Tensor]:
    """PPO's diagnostics, each in the shape of the ratio ρ: whether ρ is clipped, KL(old ‖ new) by k3, ρ, and (ρ − 1)².

    k3 = ρ − 1 − log ρ. The means of the four are the clip fraction, the KL, the mean ratio and the variance of the
    ratio.
    """
    return {
        "clip_fraction": ((ratio - 1).abs() > clip).to(ratio.dtype),
        "approx_kl": k3(-ratio.log()),
        "ratio_mean": ratio,
        "ratio_variance": (ratio - 1) ** 2,
    }


def first_step(mask: Tensor) -> Tensor:
    """(B, T) bool: the first True step of each row; all False in a row without a True step."""
    return mask & (mask.cumsum(1) == 1)


def at_first(x: Tensor, mask: Tensor, where: Tensor) -> Tensor:
    """Σ x over `where`, placed at the first True step of `mask`; 0 elsewhere.  All (B, T)"""
    return torch.where(first_step(mask), row_sums(x, where)[:, None], 0)


def refuse_replies(objective: Objective, name: str) -> None:
    """Refuse `decision: reply`. Raises ValueError: the feature `name` needs the single tokens of a reply."""
    if getattr(objective, "decision", "token") == "reply":
        raise ValueError(f"decision: reply does not work with {name}, which needs single tokens; use decision: token")


class PolicyGradientObjective(Objective):
    """Policy gradient on the learner's own steps: REINFORCE, RLOO, GRPO, or PPO's clipped surrogate.

    Without a critic, a truncated row counts as terminated. This biases the gradient, because later rewards are ignored.

    Args:
        gamma: discount factor per valid step; by default 1 for a policy over tokens, and 0.99 for any other policy.
        baseline: name of the baseline that is subtracted from the reward-to-go. A group baseline averages over the
            learner's rows; `shared_group_mean` averages over all rows. `normalize_advantages` also subtracts the mean
            of the batch.
        clip: ε of PPO's clipped surrogate, for several passes over one collection. None: the plain policy gradient. A
            run that samples and has `data.passes` above 1 uses 0.2 in place of None.
        advantage_scale: `group_std` divides by the standard deviation of the group's returns, as in GRPO. This scale is
            applied before `normalize_advantages`.
        normalize_advantages: scale advantages to mean 0 and variance 1 over the learned steps of the collection, on all
            ranks.
        entropy_weight: weight of the entropy bonus.
        cut_at_takeover: end the learner's return when the expert takes over. With a critic, the return then includes V
            at the take-over.
        decision: `reply` treats each row as one decision of a bandit (RLOO, https://arxiv.org/abs/2402.14740). The
            log-probability of this decision is the sum over the learner's tokens. Its reward is the sum of the row's
            rewards. With a critic, its baseline is V of the prompt. γ and λ have no effect. Terms are averaged over
            replies, and schedules count a reply as one step. At γ = 1, `reply` and `token` have the same gradient if
            the reward comes at the end of the reply. Otherwise their gradients are equal in expectation.

    Raises:
        ValueError: `cut_at_takeover` is combined with `shared_group_mean`, or one of the two is combined with
            `decision: reply`; in `prepare`, the batch has no rewards.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    feedback: tuple[str, ...] = ("score",)
    policy_over = "mask"  # what the policy term is averaged over
    policy_per: str | None = None  # the count to divide by; None: the count of `policy_over`

    def __init__(
        self,
        gamma: Discount | None = None,
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
                "cut_at_takeover: shared_group_mean needs the return of whole rows, which are not cut; use one of them"
            )
        if gamma is None:
            gamma = 0.99 if self.policy.vocabulary is None else 1.0
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
        """With `decision: reply`, add the masks `replies` (B,), and `prompts` (B, T) at each reply's first step."""
        if self.decision == "token":
            return batch
        return batch.with_masks(replies=batch.mask.any(1), prompts=first_step(batch.mask))

    @property
    def decided_over(self) -> str:
        """Name of the mask (B, T) of the learner's decisions."""
        return "prompts" if self.decision == "reply" else self.policy_over

    def decided(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps of the learner's decisions."""
        return mask_named(batch, self.decided_over)

    @replaceable
    def learned_steps(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps whose advantages are whitened together."""
        return self.decided(batch)

    def credit(self, batch: Batch) -> Batch:
        """Compute returns and advantages of the learner's decisions.

        Whiten the advantages if `normalize_advantages` is set.
        """
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
        """Add returns, and advantages if the batch has none. An advantage is the reward-to-go minus its baseline."""
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
        """(B, T) bool: the steps whose return ends with the next value."""
        return takeover_cuts(batch.mask, batch.valid) if self.cut_at_takeover else None

    def whiten(self, batch: Batch) -> Tensor:
        """Whiten advantages to mean 0 and (biased) variance 1 over the learned steps of all ranks.  (B, T)"""
        assert batch.advantages is not None
        mean, variance = moments(batch.advantages, self.learned_steps(batch), self.sum_over_ranks)
        return torch.where(batch.valid, (batch.advantages - mean) * torch.rsqrt(variance + 1e-8), 0)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        """Yield the policy gradient loss and its figures.

        Raises MissingField: the batch has no advantages, or, with `clip`, no log_probs of the policy that acted.
        """
        advantages = required(batch.advantages, "the batch has no advantages; call `prepare` first")
        over, reply = self.policy_over, self.decision == "reply"

        def of_decision(x: Tensor) -> Tensor:
            return row_sums(x, batch.mask) if reply else x

        if reply:
            over, advantages = "replies", row_sums(advantages, batch.masks["prompts"])
        log_probs = of_decision(now.log_probs)
        if self.clip is None:
            loss = policy_gradient_loss(log_probs, advantages)
        else:
            old = required(batch.log_probs, "clip: the batch has no log_probs of the policy that acted")
            ratio = importance_ratio(log_probs, of_decision(old), mask_named(batch, over))
            loss = clipped_policy_loss(ratio, advantages, self.clip)
            for name, x in ratio_figures(ratio.detach(), self.clip).items():
                yield Term(name, x, over, logged_only=True)
        if (log_ratio := batch.extra.get("server_log_ratio")) is not None:
            weight = truncated_ratio(of_decision(log_ratio), self.ratio_cap)
            loss = loss * weight
            yield Term("mismatch_capped", (weight == self.ratio_cap).to(loss.dtype), over, logged_only=True)
        yield Term("policy", loss, over, self.policy_per)
        if self.entropy_weight:
            yield Term("entropy", of_decision(now.entropy), over, weight=-self.entropy_weight)


class ReinforcePolicy(PolicyGradientObjective, PolicyModule):
    """REINFORCE with reward-to-go; PPO without a critic when `clip` is set."""
