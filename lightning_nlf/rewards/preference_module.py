"""Base of reward models for whole replies that are trained on rankings, with normalised rewards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import mean_or_zero
from lightning_nlf.maths.preferences import pairs
from lightning_nlf.maths.steps import last_valid, row_sums
from lightning_nlf.networks import Reward
from lightning_nlf.numbers import Count
from lightning_nlf.objective import Best, Evaluation
from lightning_nlf.private_names import trainer_of
from lightning_nlf.rewards.reliability import Reliability
from lightning_nlf.rewards.reward_module import RewardModule


class PreferenceModule(RewardModule):
    """Reward model for whole replies, trained on rankings within a `group`. The network is read at the last token.

    At the end of each epoch, a gain and a bias are set so that the rewards have mean 0 and variance 1 on training rows
    (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593). Gain and bias apply only to the rewards that a policy gets.
    The loss and the calibration use differences of unscaled rewards, because these are log-odds.

    Args:
        normalize: number of rows for the normalisation, over all ranks; 0 disables the normalisation.

    An evaluation logs `accuracy` on pairs without a tie; a pair with equal rewards counts as half right. It also logs
    `calibration_error`, for the probability that the better reply wins if there is no tie. `reliability.md` is an
    exhibit.

    Raises:
        ValueError: `normalize` is negative; a batch has no `group` and `rank`.
    """

    best: Best = ("accuracy", "max")
    feedback: tuple[str, ...] = ("ranking", "preference")
    measures: tuple[str, ...] = ("accuracy", "calibration_error")
    gain: Tensor  # () 1/s, where s is the std of the rewards
    bias: Tensor  # () −m/s, where m is the mean of the rewards

    def __init__(self, reward: Reward, normalize: Count = 256, **kwargs: Any) -> None:
        super().__init__(reward, **kwargs)
        if normalize < 0:
            raise ValueError(f"normalize: got {normalize} rows, must not be negative; 0 disables normalisation")
        self.normalize = normalize
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))
        self.calibration = Reliability()
        self._sample: Batch | None = None

    def win_log_probs(self, difference: Tensor) -> Tensor:
        """Log-probabilities of (win, tie, lose) for the difference of two rewards.  (P,) → (P, 3)"""
        raise NotImplementedError

    def masks(self, batch: Batch) -> Batch:
        """Add the mask `ranked`: the last step of each ranked reply."""
        if batch.group is None or batch.rank is None:
            raise ValueError(
                "a reward from rankings needs `group` and `rank` in the batch, with several replies to each prompt"
            )
        return batch.with_masks(ranked=last_valid(batch.valid) & (batch.rank >= 0)[:, None])

    # ---- normalisation

    def policy_reward(self, rewards: Tensor) -> Tensor:
        return self.gain * rewards + self.bias

    def reweigh(self, batch: Batch) -> Batch:
        """Remember rows for the normalisation. The batch is not changed."""
        if self.normalize:
            rows = batch.masks["ranked"].any(1).nonzero()[:, 0]
            trainer = trainer_of(self)
            world = 1 if trainer is None else trainer.world_size
            count = min(-(-self.normalize // world), len(rows))
            spread = torch.linspace(0, max(len(rows) - 1, 0), count, device=rows.device)
            self._sample = batch[rows[spread.long()]]
        return batch

    def on_validation_start(self) -> None:
        self._scale()

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self._scale()

    @torch.no_grad()
    def _scale(self) -> None:
        """Set gain and bias once per epoch. This is before any checkpoint, which may be saved before the validation."""
        if self._sample is None:
            return
        steps = self._sample.masks["ranked"]
        rewards = row_sums(self._read_all(self._sample, steps), steps) if len(steps) else self.gain.new_zeros(0)
        count = self.sum_over_ranks(self.gain.new_tensor(len(rewards))).clamp(min=1)
        mean = self.sum_over_ranks(rewards.sum()) / count
        variance = self.sum_over_ranks(((rewards - mean) ** 2).sum()) / count
        self.gain.copy_(torch.where(variance > 0, variance, 1).rsqrt())
        self.bias.copy_(-mean * self.gain)
        self._sample = None

    # ---- evaluation

    def measure(self, stage: str, batch: Batch, now: Evaluation) -> None:
        assert batch.group is not None and batch.rank is not None and now.values is not None
        ranked = pairs(batch.group, batch.rank)
        strict = ranked.difference(row_sums(now.values, now.where))[~ranked.tie]
        better = (strict > 0) + 0.5 * (strict == 0)
        self.log_mean(stage, "accuracy", mean_or_zero(better), strict.new_tensor(len(strict)))
        win, _, lose = self.win_log_probs(strict).unbind(-1)
        probability = (win - lose).sigmoid()
        # Each pair counts in both orders, because `better` always comes first.
        certain = torch.ones_like(probability)
        self.calibration.update(torch.cat([probability, 1 - probability]), torch.cat([certain, 1 - certain]))
        self.log(f"{stage}/calibration_error", self.calibration, batch_size=len(ranked.tie))
