"""Pendulum episodes that can stop and continue later: the simulator's states are passed in and out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.episodes import IntArray, play_rows
from data_modules.pendulum.simulator import BoolArray, FloatArray, InvertedPendulum
from lightning_nlf.batch import Actor, Batch


@dataclass
class Ended:
    """The states in which the rows of a collection stopped."""

    states: FloatArray  # (B, S)
    elapsed: np.ndarray  # (B,) steps since the episode's reset
    over: BoolArray  # (B,) terminated or truncated; if False, the next collection continues the episode
    returns: FloatArray  # (B,) return of each episode so far


def play(
    simulator: InvertedPendulum,
    actor: Actor,
    states: FloatArray,
    elapsed: np.ndarray,
    horizon: int,
    *,
    returns: FloatArray | None = None,
    **players: Any,
) -> tuple[Batch, Ended]:
    """Play at most `horizon` steps from each of the B states.

    Args:
        elapsed, returns: (B,) number of steps and sum of rewards since each episode's reset.
        players: the arguments `expert`, `plan`, `expert_steps`, `takeover` and `deterministic` of `play_rows`.
    Returns: the rows, with `expert_*` set at the expert's steps; and the states in which the rows stopped.
    """
    earned = np.zeros(len(states)) if returns is None else returns.copy()
    now = Ended(states.copy(), elapsed.copy(), np.zeros(len(states), dtype=bool), earned)
    return play_rows(_Pendula(simulator, now), actor, horizon, **players), now


@dataclass
class _Pendula:
    """`Episodes` that continue from the states in which they stopped."""

    simulator: InvertedPendulum
    now: Ended
    obs_dim = InvertedPendulum.obs_dim
    action_dim = InvertedPendulum.action_dim

    def __len__(self) -> int:
        return len(self.now.states)

    def observe(self, rows: IntArray) -> FloatArray:
        return self.simulator.observe(self.now.states[rows])

    def step(self, rows: IntArray, actions: NDArray[Any]) -> tuple[FloatArray, BoolArray, BoolArray]:
        now = self.now
        now.states[rows], rewards, terminated = self.simulator.step(now.states[rows], actions)
        now.elapsed[rows] += 1
        now.returns[rows] += rewards
        now.over[rows] = terminated | (now.elapsed[rows] >= self.simulator.time_limit)
        return rewards, terminated, now.over[rows]
