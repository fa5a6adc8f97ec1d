"""A reward model that was trained here in the place of the true reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import last_valid, row_sums
from lightning_nlf.numbers import Count
from lightning_nlf.rewards.reward_module import RewardModule


def least(rewards: Tensor, ends: Tensor) -> Tensor:
    """A reply is as good as its worst step.  rewards, ends (B, T) → (B,)"""
    return torch.where(ends, rewards, torch.inf).amin(1)


def product(rewards: Tensor, ends: Tensor) -> Tensor:
    """Of probabilities: that all steps are right.  (B,)"""
    return torch.where(ends, rewards, 1).prod(1)


def last(rewards: Tensor, ends: Tensor) -> Tensor:
    """What is said of the last step, which has seen the others.  (B,)"""
    return row_sums(rewards, last_valid(ends))


AGGREGATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"min": least, "product": product, "last": last}


class CheckpointReward:
    """A `Scorer`: pays what the reward model of a checkpoint says, without gradients.

    A model of whole replies pays on each row's last valid step. One of steps pays at the end of every step, or, with
    `aggregate`, one number for all of them on the last valid step. A reply without the end of a step is one step.

    Args:
        checkpoint: its path, or its name in MLflow's model registry, `models:/helpful@champion`.
        aggregate: `min`, `product` or `last` of the steps' rewards; of a model of steps only.
        step_end_token: the id of the token that ends a step. Without it a batch says where, in `extra["step_ends"]`.
        tracking_uri: of the registry; by default MLFLOW_TRACKING_URI or `outputs/mlflow.db`.
        trust: packages of your own that the checkpoint's networks are of: see `construction.rebuild`.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or one that is damaged, holds code, or names a class that
            is not trusted; a knob of a model of steps for one that is not; steps that nobody says the ends of.
    """

    def __init__(
        self,
        checkpoint: str,
        aggregate: Literal["min", "product", "last"] | None = None,
        step_end_token: Count | None = None,
        tracking_uri: str | None = None,
        trust: list[str] | None = None,
    ) -> None:
        if checkpoint.startswith("models:/"):
            from lightning_nlf.tracking.registry import fetch_registered  # MLflow, which takes seconds

            checkpoint = str(fetch_registered(checkpoint, tracking_uri))
        module: RewardModule = RewardModule.load_from_checkpoint(checkpoint, trust=trust)
        self.module = module.eval().requires_grad_(False)
        for name, knob in (("aggregate", aggregate), ("step_end_token", step_end_token)):
            if knob is not None and not self.module.by_step:
                raise ValueError(f"{name}: {checkpoint} judges whole replies, not their steps; leave {name} out")
        self.aggregate, self.step_end_token = aggregate, step_end_token

    @property
    def tokenizer_digest(self) -> str | None:
        """Of the tokenizer whose ids the model reads; None if the checkpoint does not say."""
        return self.module.tokenizer_digest

    @property
    def context(self) -> int | None:
        """Tokens of a row that the model can read; None without a limit."""
        return self.module.reward.longest

    def score(self, batch: Batch) -> Tensor:
        """`Scorer.score`: rewards (B, T), 0 where nothing is paid. On the batch's device."""
        ends, final = self.ends(batch), last_valid(batch.valid)
        rewards = self.module.to(batch.obs.device).judge(batch, ends)
        if self.aggregate is None:
            return rewards
        return torch.where(final, AGGREGATES[self.aggregate](rewards, ends)[:, None], 0)

    def ends(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps behind which the model is asked."""
        final = last_valid(batch.valid)
        if not self.module.by_step:
            return final
        if self.step_end_token is not None:
            ends = batch.actions == self.step_end_token
        elif "step_ends" in batch.extra:
            ends = batch.extra["step_ends"]
        else:
            raise ValueError('step_end_token: give it, or batches with extra["step_ends"]: else no step has an end')
        ends = ends & batch.valid
        return torch.where(ends.any(1, keepdim=True), ends, final)
