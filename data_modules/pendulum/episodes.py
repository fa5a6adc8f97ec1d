"""The pendulum's episodes: states that go into the simulator and come out of it, and where they stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_modules.episodes import IntArray, play_rows
from data_modules.pendulum.simulator import BoolArray, FloatArray, InvertedPendulum
from data_modules.value_trigger import Triggered
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
    triggered: Triggered | None = None,
    deterministic: bool = False,
) -> tuple[Batch, Ended]:
    """At most `horizon` steps from each of the B states.

    Args:
        elapsed, returns: (B,) steps and rewards since each episode's reset.
        expert, plan, expert_steps, triggered, deterministic: as `play_rows` takes them.
    Returns: the rows, with `expert_*` filled in where the expert acted, and where they stopped.
    """
    pendula = _Pendula(simulator, states, elapsed)
    batch = play_rows(
        pendula,
        actor,
        horizon,
        expert=expert,
        plan=plan,
        expert_steps=expert_steps,
        triggered=triggered,
        deterministic=deterministic,
    )
    assert batch.rewards is not None
    earned = batch.rewards.sum(1).double().numpy() + (0 if returns is None else returns)
    return batch, Ended(pendula.states, pendula.elapsed, pendula.over, earned)


class _Pendula:
    """`Episodes` from given states, which are copied."""

    obs_dim, action_dim = InvertedPendulum.obs_dim, InvertedPendulum.action_dim

    def __init__(self, simulator: InvertedPendulum, states: FloatArray, elapsed: np.ndarray) -> None:
        self.simulator = simulator
        self.states, self.elapsed = states.copy(), elapsed.copy()
        self.over = np.zeros(len(states), dtype=bool)

    def __len__(self) -> int:
        return len(self.states)

    def observe(self, rows: IntArray) -> FloatArray:
        return self.simulator.observe(self.states[rows])

    def step(self, rows: IntArray, actions: NDArray[Any]) -> tuple[FloatArray, BoolArray, BoolArray]:
        self.states[rows], rewards, terminated = self.simulator.step(self.states[rows], actions)
        self.elapsed[rows] += 1
        over = terminated | (self.elapsed[rows] >= self.simulator.time_limit)
        self.over[rows] = over
        return rewards, terminated, over
