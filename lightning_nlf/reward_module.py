"""A network that says what a reply is worth: how it reads, how it is measured, and its scale once it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli
from torchmetrics import MeanMetric

from lightning_nlf.batch import Batch, pad_steps
from lightning_nlf.functional import after_actions, last_valid, row_counts, row_sums
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.networks import Reward
from lightning_nlf.numbers import Count
from lightning_nlf.objective import Evaluation, scattered
from lightning_nlf.preferences import pairs
from lightning_nlf.reliability import Reliability


class RewardModule(ObjectiveModule):
    """A reward network that learns from a teacher's judgements. It does not act; `CheckpointReward` pays by it.

    A child says where the teacher judged (`judged`), and what its one term is a mean over (`counted`).
    """

    CHUNK = 64  # rows at a time where there are many
    exhibits_text = True
    counted: str  # the name in `Batch.totals`
    by_step = False  # whether the ends of steps are judged, or whole replies
    tokenizer_digest: str | None = None  # of the tokenizer that it was trained with, if the checkpoint says

    def __init__(self, reward: Reward, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reward = reward
        self.loss = MeanMetric()

    def judged(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps behind which a reward is learned."""
        raise NotImplementedError

    def read(self, batch: Batch, steps: Tensor) -> Tensor:
        """What the network says behind each of `steps` (B, T), which are valid; 0 elsewhere.  (B, T)"""
        obs, where = after_actions(batch, steps)
        return scattered(self.reward(obs, where).float(), steps)

    def evaluate(self, batch: Batch) -> Evaluation:
        """`values` are the rewards, as the network says them; `distribution` takes them for log-odds."""
        steps = self.judged(batch)
        if not steps.any():  # a rank with nothing to learn from still takes part in every all-reduce
            steps = torch.zeros_like(steps).index_fill(1, torch.zeros(1, dtype=torch.long, device=steps.device), True)
        rewards = self.read(batch, steps)
        odds = Bernoulli(logits=rewards[steps], validate_args=False)
        return Evaluation(steps, odds, torch.zeros_like(rewards), rewards)

    def paid(self, rewards: Tensor) -> Tensor:
        """What the policy is paid where the network says `rewards`, of any shape."""
        return rewards

    @torch.no_grad()
    def judge(self, batch: Batch, steps: Tensor) -> Tensor:
        """What is paid behind each of `steps` (B, T), which are valid; 0 elsewhere.  (B, T)

        In eval mode, `CHUNK` rows at a time. Needs `final_obs`.
        """
        return torch.where(steps, self.paid(self._read_all(batch, steps)), 0)

    def _read_all(self, batch: Batch, steps: Tensor) -> Tensor:
        parts = []
        with self.acting():
            for first in range(0, len(batch), self.CHUNK):
                rows = slice(first, first + self.CHUNK)
                part = batch[rows]  # cut to its longest row
                said = self.read(part, steps[rows, : part.mask.shape[1]])
                parts.append(pad_steps(said, steps.shape[1]))
        return torch.cat(parts)

    def measure(self, stage: str, batch: Batch, loader: int) -> None:
        """`loss`, a mean over all that was judged, however it was cut into batches; and what `contrast` adds."""
        if loader:
            raise ValueError("a reward is measured on one evaluation loader; with a second its metrics would be mixed")
        self.contrast(stage, batch, self.evaluate(batch))

    def contrast(self, stage: str, batch: Batch, now: Evaluation) -> None:
        """What `measure` logs of the network's word and the teacher's; cooperative."""
        loss = torch.stack(list(self.terms(batch, now).values())).sum()
        self.loss.update(loss, row_counts(batch)[self.counted].sum())
        self.log(f"{stage}/loss", self.loss, batch_size=len(batch))

    def exhibits(self, folder: Path) -> list[Path]:
        """`reliability.md`, of the last evaluation, if there was one of probabilities."""
        calibration = getattr(self, "calibration", None)
        if not isinstance(calibration, Reliability) or not len(calibration.table):
            return []
        path = folder / "reliability.md"
        path.write_text(calibration.markdown(), encoding="utf-8")
        return [path]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.tokenizer_digest = checkpoint.get("tokenizer_digest")


class PreferenceModule(RewardModule):
    """A reward of whole replies from rankings of them: read behind the last token, compared within a `group`.

    When an epoch ends, the rewards are brought to mean 0 and variance 1 over rows that were trained on, by a gain and
    a bias for what is paid (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593). Differences of rewards stay the
    log-odds that the loss and the calibration are about.

    Args:
        normalize: rows for that, over all ranks; 0 leaves the rewards as they are.

    Logs of an evaluation: `accuracy` on the strict pairs (equal rewards count half); `calibration_error` of the
    probability that the better one wins, given that one wins. `reliability.md` is an exhibit.

    Raises:
        ValueError: `normalize` is negative; a batch without `group` and `rank`.
    """

    gain: Tensor  # () 1/s
    bias: Tensor  # () −m/s

    def __init__(self, reward: Reward, normalize: Count = 256, **kwargs: Any) -> None:
        super().__init__(reward, **kwargs)
        if normalize < 0:
            raise ValueError(f"normalize: got {normalize} rows, must not be negative; 0 leaves the rewards as they are")
        self.normalize = normalize
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))
        self.accuracy, self.calibration = MeanMetric(), Reliability()
        self._sample: Batch | None = None

    def judged(self, batch: Batch) -> Tensor:
        if batch.group is None or batch.rank is None:
            raise ValueError(
                "a reward from rankings needs batches with `group` and `rank`: several replies to a prompt"
            )
        return last_valid(batch.valid) & (batch.rank >= 0)[:, None]

    def win_log_probs(self, difference: Tensor) -> Tensor:
        """log P of (win, tie, lose) at the difference of two rewards.  (P,) → (P, 3)"""
        raise NotImplementedError

    # ---- the scale

    def paid(self, rewards: Tensor) -> Tensor:
        return self.gain * rewards + self.bias

    def prepare(self, batch: Batch) -> Batch:
        batch = super().prepare(batch)
        if self.normalize:
            rows = self.judged(batch).any(1).nonzero()[:, 0]
            world = 1 if self._trainer is None else self.trainer.world_size
            count = min(-(-self.normalize // world), len(rows))
            spread = torch.linspace(0, max(len(rows) - 1, 0), count, device=rows.device)
            self._sample = batch[rows[spread.long()]]
        return batch

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Before a checkpoint is written."""
        super().on_train_epoch_end()
        if self._sample is None:
            return
        steps = self.judged(self._sample)
        rewards = row_sums(self._read_all(self._sample, steps), steps) if len(steps) else self.gain.new_zeros(0)
        count = self.sum_over_ranks(self.gain.new_tensor(len(rewards))).clamp(min=1)
        mean = self.sum_over_ranks(rewards.sum()) / count
        variance = self.sum_over_ranks(((rewards - mean) ** 2).sum()) / count
        self.gain.copy_(torch.where(variance > 0, variance, 1).rsqrt())
        self.bias.copy_(-mean * self.gain)

    # ---- evaluation

    def contrast(self, stage: str, batch: Batch, now: Evaluation) -> None:
        super().contrast(stage, batch, now)
        assert batch.group is not None and batch.rank is not None and now.values is not None
        found = pairs(batch.group, batch.rank)
        self.compared(stage, found.difference(row_sums(now.values, now.where)), found.tie)

    def compared(self, stage: str, difference: Tensor, tie: Tensor) -> None:
        """Logs what P pairs say: difference of the rewards (P,), tie (P,) bool; cooperative."""
        strict = difference[~tie]
        self.accuracy.update((strict > 0) + 0.5 * (strict == 0))
        win, _, lose = self.win_log_probs(strict).unbind(-1)
        probability = (win - lose).sigmoid()
        # Each pair from both sides: the better one always comes first.
        certain = torch.ones_like(probability)
        self.calibration.update(torch.cat([probability, 1 - probability]), torch.cat([certain, 1 - certain]))
        self.log(f"{stage}/accuracy", self.accuracy, batch_size=len(tie))
        self.log(f"{stage}/calibration_error", self.calibration, batch_size=len(tie))
