"""Playing episodes: the learner acts, the expert where the plan says so, only running rows are stepped."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.value_trigger import Triggered
from lightning_nlf.batch import Actor, Batch, Expert

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


class Episodes(Protocol):
    """B episodes under way, each a row; those that are over wait."""

    obs_dim: int
    action_dim: int

    def __len__(self) -> int:
        """B."""
        ...

    def observe(self, rows: IntArray) -> NDArray[Any]:
        """(n, obs_dim) of the n `rows`."""
        ...

    def step(self, rows: IntArray, actions: NDArray[Any]) -> tuple[FloatArray, BoolArray, BoolArray]:
        """One decision, actions (n, action_dim), in each of the n `rows`.

        Returns: rewards, terminated, and over, which is terminated or truncated; each (n,).
        """
        ...


def play_rows(
    episodes: Episodes,
    actor: Actor,
    horizon: int,
    *,
    expert: Expert | None = None,
    plan: Tensor | None = None,
    expert_steps: int | None = None,
    triggered: Triggered | None = None,
    deterministic: bool = False,
) -> Batch:
    """At most `horizon` steps of each of the B episodes, until it is over.

    Args:
        plan: (B, horizon) bool, where the expert acts; at most `expert_steps` times in all.
        triggered: asked before each step about the rows in which the learner would act; `plan` takes its answers.
    Returns: the rows, with `expert_*` filled in where the expert acted.
    """
    record = _Record(episodes, horizon, expert)
    left = np.iinfo(np.int64).max if expert_steps is None else expert_steps
    running = np.arange(len(episodes))
    for t in range(horizon):
        obs = torch.from_numpy(episodes.observe(running).astype(np.float32))
        actions, log_probs, _, _ = actor.act(obs, None, deterministic)
        actions, log_probs = actions.to("cpu", torch.float32), log_probs.to("cpu", torch.float32)
        rows = torch.from_numpy(running)
        if plan is not None and expert is not None and left > 0:
            if triggered is not None:
                asked = (~plan[rows, t]).nonzero()[:, 0]
                if len(asked):
                    called = asked[triggered.trigger(actor.values(obs[asked]))]
                    plan[rows[called], t : t + triggered.length] = True
            taken = plan[rows, t].nonzero()[:left, 0]
            if len(taken):
                left -= len(taken)
                actions[taken], log_probs[taken], params = expert.act(obs[taken])
                record.expert(t, rows[taken], actions[taken], params)
        rewards, terminated, over = episodes.step(running, actions.numpy())
        record.step(t, rows, obs, actions, log_probs, rewards)
        record.terminated[rows[terminated]] = True
        running = running[~over]
        if not len(running):
            break
    return record.batch(torch.from_numpy(episodes.observe(np.arange(len(episodes))).astype(np.float32)))


class _Record:
    """The tensors of a collection, written step by step."""

    def __init__(self, episodes: Episodes, horizon: int, expert: Expert | None) -> None:
        shape = (len(episodes), horizon)
        self.obs = torch.zeros(*shape, episodes.obs_dim)
        self.actions = torch.zeros(*shape, episodes.action_dim)
        self.valid = torch.zeros(shape, dtype=torch.bool)
        self.log_probs, self.rewards = torch.zeros(shape), torch.zeros(shape)
        self.terminated = torch.zeros(len(episodes), dtype=torch.bool)
        self.expert_mask = torch.zeros(shape, dtype=torch.bool)
        self.params: dict[str, Tensor] | None = None
        if expert is not None:  # asked once for the shapes: every collection has the same fields
            params = expert.act(torch.zeros(1, episodes.obs_dim))[2]
            self.params = {name: torch.zeros(*shape, *x.shape[1:]) for name, x in params.items()}

    def step(self, t: int, rows: Tensor, obs: Tensor, actions: Tensor, log_probs: Tensor, rewards: FloatArray) -> None:
        self.obs[rows, t], self.actions[rows, t], self.log_probs[rows, t] = obs, actions, log_probs
        self.rewards[rows, t] = torch.from_numpy(rewards).float()
        self.valid[rows, t] = True

    def expert(self, t: int, rows: Tensor, actions: Tensor, params: dict[str, Tensor]) -> None:
        self.expert_mask[rows, t] = True
        assert self.params is not None
        for name, x in params.items():
            self.params[name][rows, t] = x

    def batch(self, final_obs: Tensor) -> Batch:
        expert: dict[str, Any] = {}
        if self.params is not None:
            expert = {"expert_actions": self.actions.clone(), "expert_mask": self.expert_mask}
        return Batch(
            obs=self.obs,
            actions=self.actions,
            valid=self.valid,
            mask=self.valid & ~self.expert_mask,
            log_probs=self.log_probs,
            rewards=self.rewards,
            final_obs=final_obs,
            terminated=self.terminated,
            expert_params=self.params,
            **expert,
        ).trim()
