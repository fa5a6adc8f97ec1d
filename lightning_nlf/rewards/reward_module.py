"""Base module of reward models: reads the network, computes the rewards for the policy, and logs evaluations."""

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
    """Base module of reward models, trained on a teacher's judgements.

    `CheckpointReward` uses such a module to reward a policy.

    The network is read after the steps in `Batch.masks`. The objectives add these masks.

    Args: reward: the reward network.
    """

    CHUNK = 64  # rows at a time in a pass without gradients
    exhibits_text = True
    measures: tuple[str, ...] = ("loss",)
    names_loss = True
    by_step = False  # whether the model scores the ends of steps instead of whole replies
    tokenizer_digest: str | None = None  # digest of the training tokenizer, from the checkpoint

    def __init__(self, reward: Reward, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reward = reward

    def read(self, batch: Batch, steps: Tensor) -> Tensor:
        """Output of the network after each True step of `steps` (B, T), a subset of `valid`; 0 elsewhere.  (B, T)"""
        obs, where = after_actions(batch, steps)
        return scattered(self.reward(obs, where).float(), steps)

    def read_steps(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps after which a reward is learned."""
        steps = torch.zeros_like(batch.valid)
        for mask in batch.masks.values():
            steps = steps | mask if mask.ndim == 2 else steps
        return steps

    def evaluate(self, batch: Batch) -> Evaluation:
        """Evaluate the network. `values` are the unscaled rewards, and `distribution` uses them as log-odds."""
        steps = self.read_steps(batch)
        if not steps.any():  # a rank without such steps must still take part in every all-reduce
            steps = torch.zeros_like(steps).index_fill(1, torch.zeros(1, dtype=torch.long, device=steps.device), True)
        rewards = self.read(batch, steps)
        odds = Bernoulli(logits=rewards[steps], validate_args=False)
        return Evaluation(steps, odds, torch.zeros_like(rewards), rewards)

    def policy_reward(self, rewards: Tensor) -> Tensor:
        """Map the output of the network, of any shape, to the reward for the policy."""
        return rewards

    @torch.no_grad()
    def judge(self, batch: Batch, steps: Tensor) -> Tensor:
        """Rewards for the policy after each True step of `steps` (B, T), a subset of `valid`; 0 elsewhere.  (B, T)

        The network runs in eval mode, on `CHUNK` rows at a time. The batch needs `final_obs`.
        """
        return torch.where(steps, self.policy_reward(self._read_all(batch, steps)), 0)

    def _read_all(self, batch: Batch, steps: Tensor) -> Tensor:
        parts, rewards = self.reading_parts(steps, self.CHUNK), []
        with self.acting():
            for rows in parts:
                part = batch[rows]  # cut to the longest row of the part
                read = self.read(part, steps[rows, : part.mask.shape[1]])
                rewards.append(pad_steps(read, steps.shape[1]))
        return torch.cat(rewards)[torch.cat(parts).argsort()]

    def assess(self, stage: str, batch: Batch, loader: int = 0) -> None:
        """Log the metrics of an evaluation batch.

        Raises ValueError: the batch comes from a second evaluation loader.
        """
        if loader:
            raise ValueError("a reward model takes one evaluation dataloader; with several, metrics would be mixed")
        self.assess_held_out(stage, batch)
        self.held_out_losses = ("loss",)

    def exhibits(self, folder: Path) -> list[Path]:
        """Write `reliability.md` for the last evaluation, if this evaluation measured probabilities."""
        calibration = getattr(self, "calibration", None)
        if not isinstance(calibration, Reliability) or not len(calibration.table):
            return []
        path = folder / "reliability.md"
        path.write_text(calibration.markdown(), encoding="utf-8")
        return [path]

    def load(self, checkpoint: dict[str, Any]) -> None:
        self.tokenizer_digest = checkpoint.get("tokenizer_digest")
