"""A reward network: where it reads, what it pays, and how it is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli

from lightning_nlf.batch import Batch, pad_steps
from lightning_nlf.maths.steps import after_actions
from lightning_nlf.modules.objective_module import ObjectiveModule
from lightning_nlf.networks import Reward
from lightning_nlf.objective import Evaluation, scattered
from lightning_nlf.rewards.reliability import Reliability


class RewardModule(ObjectiveModule):
    """A reward network that learns from a teacher's judgements. It does not act; `CheckpointReward` pays by it.

    It is read behind the steps of `Batch.masks`, which its objectives fill.

    Args: reward: the network.
    """

    CHUNK = 64  # rows at a time where there are many
    exhibits_text = True
    measures: tuple[str, ...] = ("loss",)
    names_loss = True
    by_step = False  # whether the ends of steps are judged, or whole replies
    tokenizer_digest: str | None = None  # of the tokenizer that it was trained with, if the checkpoint says

    def __init__(self, reward: Reward, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reward = reward

    def read(self, batch: Batch, steps: Tensor) -> Tensor:
        """What the network says behind each of `steps` (B, T), which are valid; 0 elsewhere.  (B, T)"""
        obs, where = after_actions(batch, steps)
        return scattered(self.reward(obs, where).float(), steps)

    def read_steps(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps behind which a reward is learned."""
        steps = torch.zeros_like(batch.valid)
        for mask in batch.masks.values():
            steps = steps | mask if mask.ndim == 2 else steps
        return steps

    def evaluate(self, batch: Batch) -> Evaluation:
        """`values` are the rewards, as the network says them; `distribution` takes them for log-odds."""
        steps = self.read_steps(batch)
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
        parts, rewards = self.reading_parts(steps, self.CHUNK), []
        with self.acting():
            for rows in parts:
                part = batch[rows]  # cut to its longest row
                read = self.read(part, steps[rows, : part.mask.shape[1]])
                rewards.append(pad_steps(read, steps.shape[1]))
        return torch.cat(rewards)[torch.cat(parts).argsort()]

    def assess(self, stage: str, batch: Batch, loader: int = 0) -> None:
        """Raises ValueError: a second evaluation loader."""
        if loader:
            raise ValueError("a reward is measured on one evaluation loader; with a second its metrics would be mixed")
        self.assess_held_out(stage, batch)
        self.held_out_losses = ("loss",)

    def exhibits(self, folder: Path) -> list[Path]:
        """`reliability.md`, of the last evaluation, if there was one of probabilities."""
        calibration = getattr(self, "calibration", None)
        if not isinstance(calibration, Reliability) or not len(calibration.table):
            return []
        path = folder / "reliability.md"
        path.write_text(calibration.markdown(), encoding="utf-8")
        return [path]

    def load(self, checkpoint: dict[str, Any]) -> None:
        self.tokenizer_digest = checkpoint.get("tokenizer_digest")
