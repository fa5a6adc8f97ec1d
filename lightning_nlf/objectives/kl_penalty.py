"""KL penalty to the reference policy for RLHF, in the reward or in the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_nlf.batch import Batch, required
from lightning_nlf.maths.kl import k1, k2, k3
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Positive
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.objectives.actor_critic import ValueObjective
from lightning_nlf.objectives.baselines import Sum, moments, one_process
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective
from lightning_nlf.objectives.reference import ReferenceObjective

KL_HORIZON = 10_000  # number of responses in which β grows by at most a fifth: Ziegler et al. 2019, §2.2
ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def adapted_beta(beta: Tensor, kl: Tensor, target: float, rows: Tensor, horizon: float) -> Tensor:
    """Adaptive KL coefficient β(1 + e·n/horizon), e = clip(KL/target − 1, ±.2).  ()

    Source: §2.2 of https://arxiv.org/abs/1909.08593.
    Args: kl (): mean KL of whole responses; rows (): n, the number of responses.
    """
    error = (kl / target - 1).clamp(-0.2, 0.2)
    return beta * (1 + error * rows / horizon)


def whitened_rewards(rewards: Tensor, mask: Tensor, over_ranks: Sum = one_process) -> Tensor:
    """Scale rewards to (biased) variance 1 over `mask`, and keep their mean.  rewards, mask (B, T) → (B, T)"""
    mean, variance = moments(rewards, mask, over_ranks)
    return (rewards - mean) * torch.rsqrt(variance + 1e-8) + mean


def refuse_dropout(module: nn.Module) -> None:
    """Refuse dropout.

    Raises ValueError: the module has dropout, so the ratio to the acting policy would not start at 1.
    """
    for name, part in module.named_modules():
        for key, share in vars(part).items():
            drops = "dropout" in key or (key == "p" and "Dropout" in type(part).__name__)
            if drops and isinstance(share, float) and share > 0:
                raise ValueError(f"dropout: {name} has dropout {share} in training, but not in acting; set it to 0")


class KLPenaltyObjective(Objective):
    """KL penalty in the reward: r_t − β(log π(a_t|s_t) − log π_ref(a_t|s_t)) on the learner's steps.

    π is the policy that acted. Combine with a `ReferenceObjective` and a policy gradient, which uses these rewards.
    Sources: Ziegler et al. 2019, https://arxiv.org/abs/1909.08593; Stiennon et al. 2020,
    https://arxiv.org/abs/2009.01325; Ouyang et al. 2022, https://arxiv.org/abs/2203.02155.

    Args:
        beta: β. At 0, the KL is only logged.
        kl_target: target KL of a whole response, in nats. β adapts so that the KL stays near this target. As in the
            paper, β changes by at most a fifth in 10,000 responses (`KL_HORIZON`). By default β is constant.
        kl_estimator: estimator of the KL, which is logged and compared with `kl_target`. The penalty always uses the
            unbiased k1.
        reward_clip: limit of the absolute reward. Rewards are clipped before the penalty is subtracted.
        whiten_rewards: scale rewards to variance 1 over the learner's steps of the collection, on all ranks. The mean
            of the rewards is kept.

    Raises:
        ValueError: a knob is out of its range, or a network has dropout.
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
            raise ValueError(f"beta: got {beta}, must be ≥ 0, and above 0 with kl_target, which scales it")
        for name, value in (("kl_target", kl_target), ("reward_clip", reward_clip)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: got {value}, must be above 0")
        refuse_dropout(self)
        self.kl_target, self.kl_estimator = kl_target, kl_estimator
        self.reward_clip, self.whiten_rewards = reward_clip, whiten_rewards
        # Sampled rows rarely repeat, and with a cache a resumed run would differ in the last bit.
        self.rows_come_again = False
        # A constant β comes from the yaml, an adapted β from the checkpoint.
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64), persistent=kl_target is not None)

    def shape_rewards(self, batch: Batch) -> Batch:
        """Clip the rewards, subtract β times the log-ratio to the reference, and whiten; adapt β to `kl_target`."""
        if batch.rewards is None or batch.log_probs is None or batch.ref_log_probs is None:
            raise ValueError("beta: the batch has no rewards, or no log_probs of the policy that acted")
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
        """Log the score and KL of this collection.

        Returns the mean KL of a response and the number of responses, both ().
        """
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
    """KL loss: a KL of the current policy from the reference, as a loss term on the learner's steps.

    GRPO, eq. 4 of https://arxiv.org/abs/2402.03300. The samples come from the policy that acted, even in later passes
    over the collection. k1 is not available, because its gradient ∇log π has mean 0. Needs a `ReferenceObjective`.

    Args:
        kl_weight: weight of the KL loss. At 0, the KL loss is disabled.
        kl_loss_estimator: `k3` as in GRPO, or `k2`. If π itself acted, the gradient of k2 is an unbiased estimate of
            ∇KL(π ‖ π_ref).
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
            reference = required(batch.ref_log_probs, "the batch has no ref_log_probs; call `prepare` first")
            log_ratio = torch.where(batch.mask, now.log_probs - reference, 0)
            yield Term("kl_loss", ESTIMATORS[self.kl_loss_estimator](log_ratio), "mask", weight=self.kl_weight)


class RLHFPolicy(KLPenaltyObjective, KLLossObjective, ReferenceObjective, PolicyGradientObjective, PolicyModule):
    """RLHF policy: REINFORCE, RLOO or GRPO with a KL penalty, set by `baseline`, `advantage_scale` and `clip`."""


class OneStepRLHFPolicy(KLPenaltyObjective, KLLossObjective, ReferenceObjective, PolicyGradientObjective, PolicyModule):
    """RLHF policy with one decision per reply: REINFORCE or RLOO over whole replies, with a KL penalty."""

    def __init__(self, decision: Literal["token", "reply"] = "reply", **kwargs: Any) -> None:
        super().__init__(decision=decision, **kwargs)


class RLHFAgent(
    KLPenaltyObjective, KLLossObjective, ReferenceObjective, ValueObjective, PolicyGradientObjective, PolicyModule
):
    """RLHF with a critic: PPO or A2C with a KL penalty.

    The critic is a network of its own, or a head on the policy's trunk.
    """
