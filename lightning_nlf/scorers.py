"""Reward models from checkpoints: a trained reward model replaces the true reward."""

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
    """Minimum over the steps of a reply, because a reply is as good as its worst step.  rewards, ends (B, T) → (B,)"""
    return torch.where(ends, rewards, torch.inf).amin(1)


def product(rewards: Tensor, ends: Tensor) -> Tensor:
    """Product of the step probabilities, which is the probability that all steps are right.  (B,)"""
    return torch.where(ends, rewards, 1).prod(1)


def last(rewards: Tensor, ends: Tensor) -> Tensor:
    """Reward of the last step, whose prefix contains all the other steps.  (B,)"""
    return row_sums(rewards, last_valid(ends))


AGGREGATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"min": least, "product": product, "last": last}


class CheckpointReward:
    """Reward from the reward model of a checkpoint, without gradients (a `Scorer`).

    An outcome reward model scores each row on its last valid step. A process reward model scores the end of each step.
    With `aggregate`, a process reward model gives one reward per reply, on the last valid step. A reply without a step
    end is one step.

    Args:
        checkpoint: path of the checkpoint, or its name in MLflow's model registry, such as `models:/helpful@champion`.
        aggregate: how to combine the step rewards of a process reward model: `min`, `product` or `last`.
        step_end_token: the id of the token that ends a step. If it is not set, a batch needs `extra["step_ends"]`.
        tracking_uri: address of the registry; by default MLFLOW_TRACKING_URI or `outputs/mlflow.db`.
        trust: your own packages that define the checkpoint's networks; see `construction.rebuild`.

    Raises:
        FileNotFoundError, ValueError: the checkpoint does not exist, is damaged, contains code, or names a class that
            is not trusted; a knob for process reward models is set for another model; no step ends are given.
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
            from lightning_nlf.tracking.registry import fetch_registered  # MLflow takes seconds to import

            checkpoint = str(fetch_registered(checkpoint, tracking_uri))
        module: RewardModule = RewardModule.load_from_checkpoint(checkpoint, trust=trust)
        self.module = module.eval().requires_grad_(False)
        for name, knob in (("aggregate", aggregate), ("step_end_token", step_end_token)):
            if knob is not None and not self.module.by_step:
                raise ValueError(f"{name}: {checkpoint} scores whole replies, not their steps; remove {name}")
        self.aggregate, self.step_end_token = aggregate, step_end_token

    @property
    def tokenizer_digest(self) -> str | None:
        """Digest of the tokenizer that the model was trained with.

        None if the checkpoint does not record the digest.
        """
        return self.module.tokenizer_digest

    @property
    def context(self) -> int | None:
        """Maximum row length in tokens that the model can read. None without a limit."""
        return self.module.reward.longest

    def score(self, batch: Batch) -> Tensor:
        """`Scorer.score`: rewards (B, T) on the batch's device, 0 at steps without a reward."""
        ends, final = self.ends(batch), last_valid(batch.valid)
        rewards = self.module.to(batch.obs.device).judge(batch, ends)
        if self.aggregate is None:
            return rewards
        return torch.where(final, AGGREGATES[self.aggregate](rewards, ends)[:, None], 0)

    def ends(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps after which the model scores the reply."""
        final = last_valid(batch.valid)
        if not self.module.by_step:
            return final
        if self.step_end_token is not None:
            ends = batch.actions == self.step_end_token
        elif "step_ends" in batch.extra:
            ends = batch.extra["step_ends"]
        else:
            raise ValueError('step_end_token: set it, or add extra["step_ends"] to the batch, to mark where steps end')
        ends = ends & batch.valid
        return torch.where(ends.any(1, keepdim=True), ends, final)
