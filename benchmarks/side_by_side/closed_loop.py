"""Shared by ours and the peers: the law that balances the pole, step timing, and the criterion of a solved run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from data_modules.pendulum.simulator import InvertedPendulum

Law = Callable[[np.ndarray], np.ndarray]  # obs (n, 4) → actions (n, 1)

GAINS = np.array([[1.719], [12.145], [2.015], [1.902]])  # LQR; every episode lasts 1000 steps
SOLVED, TIMES, EVERY, EPISODES, BUDGET = 950.0, 3, 100, 10, 200_000


def law(name: str) -> Law:
    """Control law u = K·s, as a product ("linear") or as a 4-32-32-1 tanh network in torch ("network")."""
    if name == "linear":
        return lambda obs: obs @ GAINS
    small = 0.01  # tanh is nearly the identity here
    net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net[0].weight[0] = small * torch.from_numpy(GAINS[:, 0])
        net[2].weight[0, 0] = 1.0
        net[4].weight[0, 0] = 1 / small

    def act(obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.from_numpy(obs).float()).numpy()

    return act


def steps_per_second(step: Callable[[], Any], envs: int, seconds: float = 0.7) -> dict[str, float]:
    """Environment steps per second of `step`, which advances `envs` environments, after a warm-up."""
    for _ in range(20):
        step()
    started, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < seconds:
        step()
        calls += 1
    return {"value": calls * envs / spent}


def sustained(passed: Sequence[bool], times: int = TIMES) -> int | None:
    """Index of the first of `times` consecutive evaluations that passed; None if there are none."""
    for i in range(len(passed) - times + 1):
        if all(passed[i : i + times]):
            return i
    return None


class Clock:
    """Clock that runs while a learner collects and updates, and stops during evaluations.

    An update is followed by an evaluation if at least 100 steps were collected since the last one: ten deterministic
    episodes in our simulator, which pass with a mean of at least 950.
    """

    def __init__(self, seed: int) -> None:
        self.simulator, self.rng = InvertedPendulum(threads=1), np.random.default_rng([seed, 1])
        self.passed: list[bool] = []
        self.at: list[dict[str, float]] = []
        self.evaluated_at, self.seconds, self.started = 0, 0.0, time.perf_counter()

    def over(self, steps: int, act: Law) -> bool:
        """To be called after an update: whether the run is solved or has spent its budget."""
        self.seconds += time.perf_counter() - self.started
        if steps - self.evaluated_at >= EVERY:
            self.evaluated_at = steps
            self.at.append({"value": self.seconds, "steps": float(steps)})
            self.passed.append(balances(act, self.simulator, self.rng))
        self.started = time.perf_counter()
        return sustained(self.passed) is not None or steps >= BUDGET

    def result(self) -> dict[str, float]:
        """Seconds and environment steps at the first of three consecutive passed evaluations, or infinity."""
        first = sustained(self.passed)
        return {"value": np.inf, "steps": np.inf} if first is None else self.at[first]


def balances(act: Law, simulator: InvertedPendulum, rng: np.random.Generator) -> bool:
    """Whether 10 episodes have a mean of at least 950 steps; stops early if this is no longer possible."""
    states, left = simulator.reset(EPISODES, rng), EPISODES * (simulator.time_limit - SOLVED)
    for t in range(simulator.time_limit):
        states, _, fallen = simulator.step(states, act(simulator.observe(states)))
        left -= fallen.sum() * (simulator.time_limit - t)  # the step at which the pole falls has no reward
        if left < 0:
            return False
        states = states[~fallen]
    return True
