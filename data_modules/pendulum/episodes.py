"""Playing episodes: the learner acts, the expert where the plan says so, only running rows are stepped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.pendulum.simulator import BoolArray, FloatArray, InvertedPendulum
from lightning_nlf.batch import Actor, Batch, Expert


@dataclass
class Ended:
    """Where the rows of a collection stopped."""

    states: FloatArray  # (B, S)
    elapsed: np.ndarray  # (B,) steps since the episode's reset
    over: BoolArray  # (B,) terminated, or out of time; else the next collection can go on from here
    returns: FloatArray  # (B,) of the episodes so far


def play(
    simulator: InvertedPendulum,
    actor: Actor,
    states: FloatArray,
    elapsed: np.ndarray,
    horizon: int,
    *,
    returns: FloatArray | None = None,
    expert: Expert | None = None,
    plan: Tensor | None = None,
    expert_steps: int | None = None,
    deterministic: bool = False,
) -> tuple[Batch, Ended]:
    """At most `horizon` steps from each of the B states.

    Args:
        elapsed, returns: (B,) steps and rewards since each episode's reset.
        plan: (B, horizon) bool, where the expert acts; at most `expert_steps` times in all.
    Returns: the rows, with `expert_*` filled in where the expert acted, and where they stopped.
    """
    record = _Record(len(states), horizon, expert)
    states, elapsed = states.copy(), elapsed.copy()
    left = np.iinfo(np.int64).max if expert_steps is None else expert_steps
    over = np.zeros(len(states), dtype=bool)
    running = np.arange(len(states))
    for t in range(horizon):
        obs = torch.from_numpy(simulator.observe(states[running]).astype(np.float32))
        actions, log_probs, _, _ = actor.act(obs, None, deterministic)
        actions, log_probs = actions.to("cpu", torch.float32), log_probs.to("cpu", torch.float32)
        rows = torch.from_numpy(running)
        if plan is not None and expert is not None and left > 0:
            taken = plan[rows, t].nonzero()[:left, 0]
            if len(taken):
                left -= len(taken)
                actions[taken], log_probs[taken], params = expert.act(obs[taken])
                record.expert(t, rows[taken], actions[taken], params)
        following, rewards, terminated = simulator.step(states[running], actions.numpy())
        record.step(t, rows, obs, actions, log_probs, rewards)
        states[running] = following
        elapsed[running] += 1
        record.terminated[rows[terminated]] = True
        ended = terminated | (elapsed[running] >= simulator.time_limit)
        over[running[ended]] = True
        running = running[~ended]
        if not len(running):
            break
    final_obs = torch.from_numpy(simulator.observe(states).astype(np.float32))
    earned = record.rewards.sum(1).double().numpy() + (0 if returns is None else returns)
    return record.batch(final_obs), Ended(states, elapsed, over, earned)


class _Record:
    """The tensors of a collection, written step by step."""

    def __init__(self, episodes: int, horizon: int, expert: Expert | None) -> None:
        shape = (episodes, horizon)
        self.obs = torch.zeros(*shape, InvertedPendulum.obs_dim)
        self.actions = torch.zeros(*shape, InvertedPendulum.action_dim)
        self.valid = torch.zeros(shape, dtype=torch.bool)
        self.log_probs, self.rewards = torch.zeros(shape), torch.zeros(shape)
        self.terminated = torch.zeros(episodes, dtype=torch.bool)
        self.expert_mask = torch.zeros(shape, dtype=torch.bool)
        self.params: dict[str, Tensor] | None = None
        if expert is not None:  # asked once for the shapes: every collection has the same fields
            params = expert.act(torch.zeros(1, InvertedPendulum.obs_dim))[2]
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
