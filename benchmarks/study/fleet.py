"""Many runs in one process: each run is a greenlet with its own module, data and generator; they share simulation.

When a run calls `episodes.play`, it is suspended, and its rows are stepped together with those of all other runs: one
MuJoCo call and one batched forward pass of the policies per step. A run resumes as soon as its own rows are done. Its
result equals that of `play` (tests/benchmarks/test_fleet.py), so the figures equal those of the Trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import greenlet
import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from data_modules.pendulum.episodes import Ended
from data_modules.pendulum.simulator import InvertedPendulum
from data_modules.takeover import Takeover
from lightning_nlf.batch import Batch, Expert
from lightning_nlf.networks import Policy

HALF_LOG_TWO_PI = 0.9189385332046727
PER_STEP = {"obs": 4, "actions": 1, "expert_mean": 1, "expert_std": 1}


@dataclass
class Request:
    """Arguments of `play`, and the random generator of the run."""

    policy: Policy
    states: np.ndarray
    elapsed: np.ndarray
    horizon: int
    returns: np.ndarray | None
    expert: Expert | None
    plan: Tensor | None
    expert_steps: int
    deterministic: bool
    allowance: float  # steps that the rows may fall short of their time limits before the request ends
    generator: torch.Generator
    slot: int = 0
    lost_steps: float = 0.0
    final: Callable[[], Any] | None = None


class Fleet:
    """Simulator for up to `slots` runs with at most `rows` rows each.

    Args: policy: any policy with the shape that all policies share.
    """

    def __init__(self, policy: Policy, slots: int, rows: int = 10, threads: int = 1) -> None:
        self.simulator = InvertedPendulum(threads)
        self.template, self.rows, self.slots = policy, rows, slots
        self.hub = greenlet.getcurrent()
        self.free = list(range(slots))
        self.active: dict[int, Request] = {}
        self.weights = {name: torch.zeros(slots, *p.shape) for name, p in policy.named_parameters()}
        count, limit = slots * rows, InvertedPendulum.time_limit
        self.states = np.zeros((count, self.simulator.state_dim))
        self.elapsed, self.t, self.ends = (np.zeros(count, dtype=np.int64) for _ in range(3))
        self.over, self.terminated, self.running, self.sampled = (np.zeros(count, dtype=bool) for _ in range(4))
        self.plan = np.zeros((count, limit), dtype=bool)
        self.planned = np.zeros(count, dtype=bool)
        self.record = {name: np.zeros((count, limit, width), dtype=np.float32) for name, width in PER_STEP.items()}
        self.record |= {name: np.zeros((count, limit), dtype=np.float32) for name in ("log_probs", "rewards")}
        self.expert_acted = np.zeros((count, limit), dtype=bool)
        self.padded = torch.zeros(slots, rows, InvertedPendulum.obs_dim)
        self.noise = torch.zeros(slots, rows, 1)
        self.stepped = 0

    # ---- interface of the runs

    def play(
        self,
        actor: Any,
        states: np.ndarray,
        elapsed: np.ndarray,
        horizon: int,
        *,
        returns: np.ndarray | None = None,
        expert: Expert | None = None,
        plan: Tensor | None = None,
        takeover: Takeover | None = None,
        expert_steps: int | None = None,
        deterministic: bool = False,
        allowance: float = np.inf,
    ) -> tuple[Batch, Ended]:
        """`episodes.play` with this fleet's simulator; suspends the run until its rows are done.

        Raises: ValueError: the take-over depends on values at run time.
        """
        if takeover is not None and takeover.asks is not None:
            raise ValueError(f"takeover: {type(takeover).__name__} depends on values, which a fleet does not compute")
        if expert is not None:
            expert.act(torch.zeros(1, InvertedPendulum.obs_dim))  # like `play`, so that both draw the same numbers
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
        left = np.iinfo(np.int64).max if expert_steps is None else expert_steps
        request = Request(
            actor.policy, states, elapsed, horizon, returns, expert, plan, left, deterministic, allowance, generator
        )  # fmt: skip
        with torch.enable_grad():  # grad mode belongs to the thread, which all runs share
            result = self.hub.switch(request)
        torch.set_rng_state(generator.get_state())
        return result

    def run(self, jobs: Iterable[Callable[[], Any]]) -> Iterable[Any]:
        """Run jobs, each in a greenlet of its own; yields their results in the order in which they end."""
        waiting = iter(jobs)
        runs: dict[int, greenlet.greenlet] = {}
        while True:
            while self.free and (job := next(waiting, None)) is not None:
                slot = self.free.pop()
                runs[slot] = greenlet.greenlet(job)
                yield from self._go_on(slot, runs, runs[slot].switch)
            if not runs:
                return
            for slot, result in self._step():
                yield from self._go_on(slot, runs, partial(runs[slot].switch, result))

    def _go_on(self, slot: int, runs: dict[int, greenlet.greenlet], switch: Callable[[], Any]) -> Iterable[Any]:
        result = switch()
        if runs[slot].dead:
            del runs[slot]
            self.free.append(slot)
            yield result
        else:
            self._join(slot, result)

    # ---- the rows

    def _join(self, slot: int, request: Request) -> None:
        request.slot = slot
        self.active[slot] = request
        for name, p in request.policy.named_parameters():
            self.weights[name][slot] = p.detach()
        count = len(request.states)
        rows = self._rows_of(request)
        self.states[rows], self.elapsed[rows], self.t[rows], self.ends[rows] = (
            request.states,
            request.elapsed,
            0,
            request.horizon,
        )
        self.over[rows], self.terminated[rows], self.running[rows] = False, False, True
        self.sampled[rows] = not request.deterministic
        self.expert_acted[rows] = False
        self.planned[rows] = request.plan is not None and request.expert is not None
        if request.plan is not None:
            self.plan[rows, : request.horizon] = request.plan.numpy()[:count]

    def _rows_of(self, request: Request) -> slice:
        start = request.slot * self.rows
        return slice(start, start + len(request.states))

    def _step(self) -> list[tuple[int, tuple[Batch, Ended]]]:
        """Advance every running row by one step; returns the finished slots with their results."""
        running = np.flatnonzero(self.running)
        self.stepped += len(running)
        slots, places = np.divmod(running, self.rows)
        obs = self.simulator.observe(self.states[running]).astype(np.float32)
        mean, std = self._forward(obs, slots, places)
        noise = self._draw(slots)
        actions = np.where(self.sampled[running, None], mean + std * noise, mean)
        with np.errstate(over="ignore"):
            log_probs = (-((actions - mean) ** 2) / (2 * std**2) - np.log(std) - HALF_LOG_TWO_PI)[:, 0]
        t = self.t[running]
        if self.planned[running].any():
            self._take_over(running, slots, t, obs, actions, log_probs)
        following, rewards, terminated = self.simulator.step(self.states[running], actions)
        for name, x in {"obs": obs, "actions": actions, "log_probs": log_probs, "rewards": rewards}.items():
            self.record[name][running, t] = x
        self.states[running] = following
        self.elapsed[running] += 1
        self.t[running] = t + 1
        ended = terminated | (self.elapsed[running] >= InvertedPendulum.time_limit)
        finished = ended | (t + 1 >= self.ends[running])
        if not finished.any():
            return []
        self.terminated[running] = terminated
        self.over[running] = ended
        self.running[running[finished]] = False
        for row in running[terminated]:
            self.active[row // self.rows].lost_steps += InvertedPendulum.time_limit - self.elapsed[row]
        touched = [self.active[slot] for slot in np.unique(slots[finished])]
        return [(request.slot, self._leave(request)) for request in touched if self._finished(request)]

    def _finished(self, request: Request) -> bool:
        return request.lost_steps > request.allowance or not self.running[self._rows_of(request)].any()

    def _forward(self, obs: np.ndarray, slots: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the running rows' actions, (n, 1) each."""
        self.padded[slots, places] = torch.from_numpy(obs)

        def distribution(weights: dict[str, Tensor], obs: Tensor) -> tuple[Tensor, Tensor]:
            normal = functional_call(self.template, weights, (obs,)).base_dist
            return normal.loc, normal.scale

        with torch.no_grad():
            mean, std = vmap(distribution)(self.weights, self.padded)
        return mean[slots, places].numpy(), std[slots, places].numpy()

    def _draw(self, slots: np.ndarray) -> np.ndarray:
        """Noise of the running rows, (n, 1), drawn from each run's own generator."""
        parts = []
        active_slots, counts = np.unique(slots, return_counts=True)
        for slot, count in zip(active_slots.tolist(), counts.tolist(), strict=True):
            request = self.active[slot]
            noise = torch.zeros(count, 1)
            parts.append(noise if request.deterministic else noise.normal_(generator=request.generator))
        return torch.cat(parts).numpy()

    def _take_over(
        self,
        running: np.ndarray,
        slots: np.ndarray,
        t: np.ndarray,
        obs: np.ndarray,
        actions: np.ndarray,
        log_probs: np.ndarray,
    ) -> None:
        planned = np.flatnonzero(self.planned[running] & self.plan[running, t])
        for slot in np.unique(slots[planned]).tolist():
            request = self.active[slot]
            acting = planned[slots[planned] == slot][: request.expert_steps]
            if not len(acting):
                continue
            request.expert_steps -= len(acting)
            assert request.expert is not None
            torch.set_rng_state(request.generator.get_state())
            chosen, densities, params = request.expert.act(torch.from_numpy(obs[acting]))
            request.generator.set_state(torch.get_rng_state())
            actions[acting], log_probs[acting] = chosen.numpy(), densities.numpy()
            rows = running[acting]
            self.expert_acted[rows, t[acting]] = True
            for name, x in params.items():
                self.record[f"expert_{name}"][rows, t[acting]] = x.numpy()

    def _leave(self, request: Request) -> tuple[Batch, Ended]:
        rows = self._rows_of(request)
        self.running[rows] = False
        del self.active[request.slot]
        length = int(self.t[rows].max())
        valid = torch.from_numpy(np.arange(length) < self.t[rows, None])

        def recorded(x: np.ndarray) -> Tensor:
            tensor = torch.from_numpy(x[rows, :length].copy())
            return torch.where(valid.view(*valid.shape, *[1] * (tensor.ndim - 2)), tensor, 0)

        expert_mask = recorded(self.expert_acted).bool()
        expert: dict[str, Any] = {}
        if request.expert is not None:
            acted = expert_mask[..., None]
            params = {name: torch.where(acted, recorded(self.record[f"expert_{name}"]), 0) for name in ("mean", "std")}
            expert = {
                "expert_actions": recorded(self.record["actions"]),
                "expert_mask": expert_mask,
                "expert_params": params,
            }
        rewards = recorded(self.record["rewards"])
        batch = Batch(
            obs=recorded(self.record["obs"]),
            actions=recorded(self.record["actions"]),
            valid=valid,
            mask=valid & ~expert_mask,
            log_probs=recorded(self.record["log_probs"]),
            rewards=rewards,
            final_obs=torch.from_numpy(self.simulator.observe(self.states[rows]).astype(np.float32)),
            terminated=torch.from_numpy(self.terminated[rows].copy()),
            **expert,
        )
        earned = rewards.sum(1).double().numpy() + (0 if request.returns is None else request.returns)
        return batch, Ended(self.states[rows].copy(), self.elapsed[rows].copy(), self.over[rows].copy(), earned)
