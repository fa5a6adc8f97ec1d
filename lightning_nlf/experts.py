"""Experts from checkpoints: a trained policy acts as the expert in another run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.language import generation
from lightning_nlf.maths.distributions import params_of
from lightning_nlf.modules import PolicyModule
from lightning_nlf.networks import Policy


class CheckpointExpert:
    """Expert for control that samples from the policy of one of our checkpoints.

    Args:
        checkpoint: path of the checkpoint, or its name in MLflow's model registry, such as `models:/pendulum@champion`.
        tracking_uri: address of the registry; by default MLFLOW_TRACKING_URI or `outputs/mlflow.db`.
        trust: your own packages that define the checkpoint's networks; see `construction.rebuild`.

    Raises:
        FileNotFoundError, ValueError: the checkpoint does not exist, is damaged, contains code, or names a class that
            is not trusted.
    """

    def __init__(self, checkpoint: str, tracking_uri: str | None = None, trust: list[str] | None = None) -> None:
        self.policy = policy_of(checkpoint, tracking_uri, trust).eval()

    @torch.no_grad()
    def act(self, obs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """`Expert.act`: obs (N, *obs) → actions (N, *act), log_probs (N,), the distribution's parameters (N, …)."""
        distribution, _ = self.policy.step(obs)
        actions = distribution.sample()
        return actions, distribution.log_prob(actions), params_of(distribution)


class PolicyTextExpert:
    """Expert for text: a language policy with frozen weights (a `TextExpert`).

    The expert can continue any prefix, label tokens and revise replies. Replies are sampled exactly as by an `Actor`.

    Args:
        policy: a policy whose `weights` are one of our checkpoints, or a model in the Hugging Face layout.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.requires_grad_(False).eval()

    @property
    def tokenizer_digest(self) -> str | None:
        """Digest of the tokenizer that the policy was trained with. None if the weights do not record the digest."""
        return self.policy.tokenizer_digest

    @property
    def context(self) -> int | None:
        """Maximum length in tokens of a prompt with its reply. None without a limit."""
        return self.policy.longest

    @torch.no_grad()
    def reply(self, ids: Tensor, lengths: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """`Actor.reply`, on the device of `ids`."""
        return generation.reply(self.policy.to(ids.device), ids, lengths, state, **how)

    @torch.no_grad()
    def label(self, obs: Tensor, where: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`TextExpert.label`: obs, where (B, T) → actions (N,) and `{"logits": (N, V)}`, on the device of `obs`."""
        distribution = self.policy.to(obs.device)(obs, where)
        return distribution.sample(), params_of(distribution)


class CheckpointTextExpert(PolicyTextExpert):
    """Expert for text from one of our checkpoints. The kind of policy is read from the checkpoint.

    Args and raises: see `CheckpointExpert`.
    """

    def __init__(self, checkpoint: str, tracking_uri: str | None = None, trust: list[str] | None = None) -> None:
        super().__init__(policy_of(checkpoint, tracking_uri, trust))


def policy_of(checkpoint: str, tracking_uri: str | None = None, trust: Sequence[str] | None = None) -> Policy:
    """Load the policy of a checkpoint, by its path or by its name in MLflow's model registry."""
    if checkpoint.startswith("models:/"):
        from lightning_nlf.tracking.registry import fetch_registered  # MLflow takes seconds to import

        checkpoint = str(fetch_registered(checkpoint, tracking_uri))
    return PolicyModule.load_from_checkpoint(checkpoint, trust=trust).policy
