"""A policy that was trained before, here or elsewhere, as the expert of another run."""

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
    """Samples from the policy of a checkpoint of ours.

    Args:
        checkpoint: its path, or its name in MLflow's model registry, `models:/pendulum@champion`.
        tracking_uri: of the registry; by default MLFLOW_TRACKING_URI or `outputs/mlflow.db`.
        trust: packages of your own that the checkpoint's networks are of: see `construction.rebuild`.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or one that is damaged, holds code, or names a class that
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
    """A `TextExpert`: a language policy that is not trained, whoever made its weights.

    It can go on behind any prefix, label tokens, revise; an `Actor` and an expert reply in the same way.

    Args:
        policy: with its `weights`: of a checkpoint of ours, or in Hugging Face layout.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.requires_grad_(False).eval()

    @property
    def tokenizer_digest(self) -> str | None:
        """Of the tokenizer whose ids the policy means; None if its weights do not say."""
        return self.policy.tokenizer_digest

    @property
    def context(self) -> int | None:
        """Tokens of a row that it can read and end; None without a limit."""
        return self.policy.longest

    @torch.no_grad()
    def reply(self, ids: Tensor, lengths: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """`Actor.reply`. On the device of `ids`."""
        return generation.reply(self.policy.to(ids.device), ids, lengths, state, **how)

    @torch.no_grad()
    def label(self, obs: Tensor, where: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`TextExpert.label`: obs, where (B, T) → actions (N,) and {"logits": (N, V)}. On the device of `obs`."""
        distribution = self.policy.to(obs.device)(obs, where)
        return distribution.sample(), params_of(distribution)


class CheckpointTextExpert(PolicyTextExpert):
    """The same of a checkpoint of ours, which says what policy it holds.

    Args, raises: as of `CheckpointExpert`.
    """

    def __init__(self, checkpoint: str, tracking_uri: str | None = None, trust: list[str] | None = None) -> None:
        super().__init__(policy_of(checkpoint, tracking_uri, trust))


def policy_of(checkpoint: str, tracking_uri: str | None = None, trust: Sequence[str] | None = None) -> Policy:
    """The policy of a checkpoint of ours, by its path or its name in MLflow's model registry."""
    if checkpoint.startswith("models:/"):
        from lightning_nlf.tracking.registry import fetch_registered  # MLflow, which takes seconds

        checkpoint = str(fetch_registered(checkpoint, tracking_uri))
    return PolicyModule.load_from_checkpoint(checkpoint, trust=trust).policy
