"""Playing episodes: the learner acts, the expert where the plan says so, only running rows are stepped."""

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
    """B episodes under way, each a row; those that are over wait."""

    obs_dim: int
    action_dim: int

    def __len__(self) -> int:
        """B."""

    def observe(self, rows: IntArray) -> NDArray[Any]:
        """(n, obs_dim) of the n `rows`."""

    def step(self, rows: IntArray, actions: NDArray[Any]) -> tuple[FloatArray, BoolArray, BoolArray]:
        """One decision, actions (n, action_dim), in each of the n `rows`.

        Returns: rewards, terminated, and over, which is terminated or truncated; each (n,).
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
    """At most `horizon` steps of each of the B episodes, until it is over.

    Args:
        plan: (B, horizon) bool, where the expert acts; at most `expert_steps` times in all.
        takeover: whose plan it is; where it asks for values, it is asked before each step about the rows in which the
            learner would act, and `plan` takes its answers.
    Returns: the rows, with `expert_*` filled in where the expert acted.
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
                asked = (~plan[rows, t]).nonzero()[:, 0]
                if len(asked):
                    called = asked[takeover.calls(actor.values(obs[asked]))]
                    plan[rows[called], t : None if takeover.length is None else t + takeover.length] = True
            taken = plan[rows, t].nonzero()[:left, 0]
            if len(taken):
                left -= len(taken)
                actions[taken], log_probs[taken], params = expert.act(obs[taken])
                record["mask"][rows[taken], t] = False
                for name, x in params.items():
                    record["expert_params"][name][rows[taken], t] = x
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
    """The fields of a collection by name, zeros that are written step by step."""
    shape = (len(episodes), horizon)
    record: dict[str, Any] = {name: torch.zeros(shape, dtype=torch.bool) for name in ("valid", "mask")}
    record |= {name: torch.zeros(shape) for name in ("log_probs", "rewards")}
    record |= {"obs": torch.zeros(*shape, episodes.obs_dim), "actions": torch.zeros(*shape, episodes.action_dim)}
    record["terminated"] = torch.zeros(len(episodes), dtype=torch.bool)
    if expert is not None:  # asked once for the shapes: every collection has the same fields
        params = expert.act(torch.zeros(1, episodes.obs_dim))[2]
        record["expert_params"] = {name: torch.zeros(*shape, *x.shape[1:]) for name, x in params.items()}
    return record
