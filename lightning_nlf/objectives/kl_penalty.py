"""The leash of RL on language: a KL penalty in the reward or in the loss, against where the policy started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_nlf.batch import Batch, required
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Positive
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.objectives.actor_critic import ValueObjective
from lightning_nlf.objectives.baselines import Sum, moments, one_process
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective
from lightning_nlf.objectives.reference import ReferenceObjective


def k1(log_ratio: Tensor) -> Tensor:
    """d = log π − log π_ref of what π sampled: unbiased for KL(π ‖ π_ref), negative half of the time.  Any shape."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """d²/2: biased, and of little variance; its gradient is that of the KL."""
    return log_ratio**2 / 2


def k3(log_ratio: Tensor) -> Tensor:
    """e^−d − 1 + d: unbiased and never negative (Schulman 2020, "Approximating KL Divergence")."""
    return torch.expm1(-log_ratio) + log_ratio


KL_HORIZON = 10_000  # responses after which an adapted β may have grown by a fifth: Ziegler et al. 2019, §2.2
ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def adapted_beta(beta: Tensor, kl: Tensor, target: float, rows: Tensor, horizon: float) -> Tensor:
    """β(1 + e·n/horizon), e = clip(KL/target − 1, ±.2): §2.2 of https://arxiv.org/abs/1909.08593.  ()

    Args: kl () of whole responses, rows () that it is the mean of.
    """
    error = (kl / target - 1).clamp(-0.2, 0.2)
    return beta * (1 + error * rows / horizon)


def whitened_rewards(rewards: Tensor, mask: Tensor, over_ranks: Sum = one_process) -> Tensor:
    """Rewards with (biased) variance 1 over `mask`, and the mean they had.  rewards, mask (B, T) → (B, T)"""
    mean, variance = moments(rewards, mask, over_ranks)
    return (rewards - mean) * torch.rsqrt(variance + 1e-8) + mean


def refuse_dropout(module: nn.Module) -> None:
    """Raises ValueError: with dropout in training the ratio to the policy that acted is not 1 where nothing changed."""
    for name, part in module.named_modules():
        for key, share in vars(part).items():
            drops = "dropout" in key or (key == "p" and "Dropout" in type(part).__name__)
            if drops and isinstance(share, float) and share > 0:
                raise ValueError(f"dropout: {name} drops {share} while training, and not while acting; set it to 0")


class KLPenaltyObjective(Objective):
    """r_t − β(log π(a_t|s_t) − log π_ref(a_t|s_t)) in the place of r_t on the learner's steps, π being what acted.

    Joined with a `ReferenceObjective` and a policy gradient, whose advantages are of these rewards. Ziegler et al.
    2019, https://arxiv.org/abs/1909.08593; Stiennon et al. 2020, https://arxiv.org/abs/2009.01325; Ouyang et al. 2022,
    https://arxiv.org/abs/2203.02155.

    Args:
        beta: β; 0 only measures.
        kl_target: the KL of a whole response, in nats, that β is moved to hold, by at most a fifth in the paper's
            10,000 responses (`KL_HORIZON`); by default β stays.
        kl_estimator: of the KL that is logged and held; the penalty itself is the unbiased k1.
        reward_clip: rewards are clipped to ± this before the penalty.
        whiten_rewards: to variance 1 over the learner's steps of the collection, all ranks; the mean stays.

    Raises:
        ValueError: a knob out of its range, or a network with dropout.
    """

    needs: tuple[type, ...] = (ReferenceObjective, PolicyGradientObjective)
    beta: Tensor  # () float64

    def __init__(
        self,
        beta: NonNegative = 0.15,
        kl_target: Positive | None = None,
        kl_estimator: Literal["k1", "k2", "k3"] = "k1",
        reward_clip: Positive | None = None,
        whiten_rewards: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if beta < 0 or (beta == 0 and kl_target is not None):
            raise ValueError(f"beta: got {beta}, must not be negative; and above 0 with kl_target, which multiplies it")
        for name, value in (("kl_target", kl_target), ("reward_clip", reward_clip)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: got {value}, must be above 0")
        refuse_dropout(self)
        self.kl_target, self.kl_estimator = kl_target, kl_estimator
        self.reward_clip, self.whiten_rewards = reward_clip, whiten_rewards
        # What was just sampled hardly comes again; and remembered, a resumed run would differ in the last bit.
        self.rows_come_again = False
        # One that stays is the yaml's, one that moves is the checkpoint's.
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64), persistent=kl_target is not None)

    def shape_rewards(self, batch: Batch) -> Batch:
        """Clip the rewards, subtract β times the log-ratio to the reference, whiten; adapt β to `kl_target`."""
        if batch.rewards is None or batch.log_probs is None or batch.ref_log_probs is None:
            raise ValueError("beta: the batch has no rewards or no log_probs of the policy that acted")
        log_ratio = torch.where(batch.mask, batch.log_probs - batch.ref_log_probs, 0)
        clip = self.reward_clip
        rewards = batch.rewards if clip is None else batch.rewards.clamp(-clip, clip)
        rewards = rewards - self.beta * log_ratio
        if self.whiten_rewards:
            rewards = whitened_rewards(rewards, batch.mask, self.sum_over_ranks)
        kl, rows = self.note_penalty(batch, log_ratio)
        if self.kl_target is not None and rows > 0:
            self.beta.copy_(adapted_beta(self.beta, kl, self.kl_target, rows, KL_HORIZON))
        return replace(batch, rewards=rewards)

    def note_penalty(self, batch: Batch, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Logs what this collection earned and how far it strayed; the KL of a response, and their number, both ()."""
        assert batch.rewards is not None and batch.log_probs is not None
        learns = batch.mask.any(1)
        sums = {
            "score": torch.where(batch.valid & learns[:, None], batch.rewards, 0),
            "kl": ESTIMATORS[self.kl_estimator](log_ratio),
            "non_score_reward": -self.beta * log_ratio,
            "policy_entropy": torch.where(batch.mask, -batch.log_probs, 0),
        }
        local = torch.stack([x.sum().double() for x in (*sums.values(), learns, batch.mask)])
        *totals, rows, tokens = self.sum_over_ranks(local)
        for name, total in zip(sums, totals, strict=True):
            over = tokens if name == "policy_entropy" else rows
            self.note(name, total / over.clamp(min=1), counts=bool(rows > 0))
        self.note("beta", self.beta)
        return totals[1] / rows.clamp(min=1), rows


class KLLossObjective(Objective):
    """A KL of the current policy from the reference as a term of the loss, on the learner's steps.

    GRPO, eq. 4 of https://arxiv.org/abs/2402.03300. The samples are those of the policy that acted, in later passes
    too. k1 is no choice: its gradient is ∇log π, 0 in the mean. Joined with a `ReferenceObjective`.

    Args:
        kl_weight: of the term; 0 is without.
        kl_loss_estimator: k3 as in GRPO; k2 has the gradient of KL(π ‖ π_ref) where π acted.
    """

    needs: tuple[type, ...] = (ReferenceObjective,)
    reports: tuple[str, ...] = ("kl_loss",)

    def __init__(
        self, kl_weight: NonNegative = 0.0, kl_loss_estimator: Literal["k2", "k3"] = "k3", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if kl_weight < 0:
            raise ValueError(f"kl_weight: got {kl_weight}, must not be negative")
        self.kl_weight, self.kl_loss_estimator = kl_weight, kl_loss_estimator

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        if self.kl_weight:
            reference = required(batch.ref_log_probs, "the batch has no ref_log_probs: `prepare` comes first")
            log_ratio = torch.where(batch.mask, now.log_probs - reference, 0)
            yield Term("kl_loss", ESTIMATORS[self.kl_loss_estimator](log_ratio), "mask", weight=self.kl_weight)


class RLHFPolicy(KLPenaltyObjective, KLLossObjective, ReferenceObjective, PolicyGradientObjective, PolicyModule):
    """REINFORCE, RLOO or GRPO on language, by `baseline`, `advantage_scale` and `clip`, on a leash."""


class OneStepRLHFPolicy(KLPenaltyObjective, KLLossObjective, ReferenceObjective, PolicyGradientObjective, PolicyModule):
    """REINFORCE or RLOO over whole replies, each one decision, on a leash."""

    def __init__(self, decision: Literal["token", "reply"] = "reply", **kwargs: Any) -> None:
        super().__init__(decision=decision, **kwargs)


class RLHFAgent(
    KLPenaltyObjective, KLLossObjective, ReferenceObjective, ValueObjective, PolicyGradientObjective, PolicyModule
):
    """PPO or A2C on language, on a leash; the critic a network of its own or a head on the policy's trunk."""
