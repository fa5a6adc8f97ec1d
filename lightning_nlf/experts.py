"""A policy that was trained here as the expert of another run."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nlf.functional import params_of
from lightning_nlf.modules import PolicyModule


class CheckpointExpert:
    """Samples from the policy of a checkpoint of ours.

    Args:
        checkpoint: its path, or its name in MLflow's model registry, `models:/pendulum@champion`.
        tracking_uri: of the registry; by default MLFLOW_TRACKING_URI or `outputs/mlflow.db`.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or one that is damaged or holds code.
    """

    def __init__(self, checkpoint: str, tracking_uri: str | None = None) -> None:
        if checkpoint.startswith("models:/"):
            from lightning_nlf.tracking.registry import fetch_registered  # MLflow, which takes seconds

            checkpoint = str(fetch_registered(checkpoint, tracking_uri))
        self.policy = PolicyModule.load_from_checkpoint(checkpoint).policy.eval()

    @torch.no_grad()
    def act(self, obs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """`Expert.act`: obs (N, *obs) → actions (N, *act), log_probs (N,), the distribution's parameters (N, …)."""
        distribution, _ = self.policy.step(obs)
        actions = distribution.sample()
        return actions, distribution.log_prob(actions), params_of(distribution)
