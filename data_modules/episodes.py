"""Play episodes with a learner and an expert: a plan gives the expert's steps, and ended episodes are not stepped."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.takeover import Takeover
from lightning_nlf.batch import Actor, Batch, Expert

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


class Episodes(Protocol):
    """B episodes, one per row. An episode that has ended keeps its row but is not stepped."""

    obs_dim: int
    action_dim: int

    def __len__(self) -> int:
        """The number of episodes, B."""

    def observe(self, rows: IntArray) -> NDArray[Any]:
        """Observations (n, obs_dim) of `rows`."""

    def step(self, rows: IntArray, actions: NDArray[Any]) -> tuple[FloatArray, BoolArray, BoolArray]:
        """Take one step in each of the n `rows`, with actions (n, action_dim).

        Returns: rewards, terminated and over, (n,) each; over is True if the episode terminated or was truncated.
        """


def play_rows(
    episodes: Episodes,
    actor: Actor,
    horizon: int,
    *,
    expert: Expert | None = None,
    plan: Tensor | None = None,
    expert_steps: int | None = None,
    takeover: Takeover | None = None,
    deterministic: bool = False,
) -> Batch:
    """Play each of the B episodes until it ends, for at most `horizon` steps.

    Args:
        plan: (B, horizon) bool, True at the steps at which the expert acts.
        expert_steps: maximum number of steps of the expert over all rows; None = no limit.
        takeover: the rule that made the plan. If the rule needs values, it gets V of the learner's states before each
            step, and its take-overs are written into `plan`.
    Returns: the rows. `expert_*` is set at the steps at which the expert acted.
    """
    record = _record(episodes, horizon, expert)
    left = np.iinfo(np.int64).max if expert_steps is None else expert_steps
    running = np.arange(len(episodes))
    for t in range(horizon):
        obs = _observed(episodes, running)
        actions, log_probs, _, _ = actor.act(obs, None, deterministic)
        actions, log_probs = actions.to("cpu", torch.float32), log_probs.to("cpu", torch.float32)
        rows = torch.from_numpy(running)
        record["valid"][rows, t] = record["mask"][rows, t] = True
        if plan is not None and expert is not None and left > 0:
            if takeover is not None and takeover.asks is not None:
                learner_rows = (~plan[rows, t]).nonzero()[:, 0]
                if len(learner_rows):
                    called = learner_rows[takeover.calls(actor.values(obs[learner_rows]))]
                    plan[rows[called], t : None if takeover.length is None else t + takeover.length] = True
            expert_rows = plan[rows, t].nonzero()[:left, 0]
            if len(expert_rows):
                left -= len(expert_rows)
                actions[expert_rows], log_probs[expert_rows], params = expert.act(obs[expert_rows])
                record["mask"][rows[expert_rows], t] = False
                for name, x in params.items():
                    record["expert_params"][name][rows[expert_rows], t] = x
        rewards, terminated, over = episodes.step(running, actions.numpy())
        record["obs"][rows, t], record["actions"][rows, t], record["log_probs"][rows, t] = obs, actions, log_probs
        record["rewards"][rows, t] = torch.from_numpy(rewards).float()
        record["terminated"][rows[terminated]] = True
        running = running[~over]
        if not len(running):
            break
    if expert is not None:
        record |= {"expert_actions": record["actions"].clone(), "expert_mask": record["valid"] & ~record["mask"]}
    return Batch(**record, final_obs=_observed(episodes, np.arange(len(episodes)))).trim()


def _observed(episodes: Episodes, rows: IntArray) -> Tensor:
    return torch.from_numpy(episodes.observe(rows).astype(np.float32))


def _record(episodes: Episodes, horizon: int, expert: Expert | None) -> dict[str, Any]:
    """The fields of a collection by name, all zeros; they are filled step by step."""
    shape = (len(episodes), horizon)
    record: dict[str, Any] = {name: torch.zeros(shape, dtype=torch.bool) for name in ("valid", "mask")}
    record |= {name: torch.zeros(shape) for name in ("log_probs", "rewards")}
    record |= {"obs": torch.zeros(*shape, episodes.obs_dim), "actions": torch.zeros(*shape, episodes.action_dim)}
    record["terminated"] = torch.zeros(len(episodes), dtype=torch.bool)
    if expert is not None:  # one call gives the shapes, so that every collection has the same fields
        params = expert.act(torch.zeros(1, episodes.obs_dim))[2]
        record["expert_params"] = {name: torch.zeros(*shape, *x.shape[1:]) for name, x in params.items()}
    return record
