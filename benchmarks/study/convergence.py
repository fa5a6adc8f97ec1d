"""One run of the speed-up study: environment steps until a yaml solves the task on a seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.study.fleet import Fleet
from benchmarks.study.learner import iterations, read
from data_modules.minibatches import VALIDATION
from lightning_nlf.networks import Policy

SOLVED, TIMES, EVERY, EPISODES, PREVIEW = 950.0, 3, 100, 10, 1
MODES = ("sust", "sto")  # the mode of the policy, and the policy as it samples


@dataclass
class Progress:
    """Progress of a run, which lets another part of the program stop it."""

    steps: int = 0
    solved: dict[str, float] = field(default_factory=dict)
    open: dict[str, float] = field(default_factory=dict)  # step of the first candidate that may still begin a streak
    stopped: bool = False

    def finish(self, result: dict[str, Any]) -> None:
        """Copy the result of `run`, from now or from an earlier process."""
        self.steps = result["decided"]
        for mode in MODES:
            if np.isfinite(result[mode]["steps"]) or not result["lost"]:
                self.solved[mode] = result[mode]["steps"]

    def least(self, mode: str) -> float:
        """Step at which `mode` is solved, or a lower bound of it."""
        return self.solved.get(mode, self.open.get(mode, 0.0))


class FirstStreak:
    """Search for the first of three consecutive candidates that pass, with as few tests as possible.

    The third one is tested first: if it fails, none of the three begins a streak, and two tests are saved.
    """

    def __init__(self, times: int = TIMES) -> None:
        self.times, self.start = times, 0
        self._verdicts: dict[int, bool] = {}

    def search(self, count: int, passes: Callable[[int], bool]) -> int | None:
        """Start of the first streak among `count` candidates, or None; resumes the search of the last call."""
        while self.start + self.times <= count:
            for i in range(self.start + self.times - 1, self.start - 1, -1):
                if i not in self._verdicts:
                    self._verdicts[i] = passes(i)
                if not self._verdicts[i]:
                    self.start = i + 1
                    break
            else:
                return self.start
        return None


def run(
    fleet: Fleet,
    name: str,
    changes: dict[str, Any],
    seed: int,
    budget: int,
    progress: Progress,
    watch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train until both measures are solved, the budget is spent, or `progress.stopped` is set.

    Environment steps include the expert's and exclude the evaluation's. After an iteration the policy is a candidate if
    at least 100 steps were collected since the last candidate. The first of three consecutive candidates that reach 950
    counts.
    Returns: for each measure `steps` (inf if unsolved), with `labels` and optimizer steps until then; and curves with
    the steps and the return of one episode at each evaluation.
    """
    module, data, clip = read(name, changes, seed)
    data.play = fleet.play  # type: ignore[assignment]
    probe = copy.deepcopy(module.policy)
    candidates: dict[int, tuple[dict[str, float], dict[str, torch.Tensor]]] = {}
    streaks = {mode: FirstStreak() for mode in MODES}
    solved_at: dict[str, dict[str, float]] = {}
    curves: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    evaluated = count = updates = cost = 0

    def passes(mode: str, i: int) -> bool:
        nonlocal cost
        point, weights = candidates[i]
        probe.load_state_dict(weights)
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0, VALIDATION, MODES.index(mode), i]))
        passed, preview, steps = evaluate(fleet, probe, rng, deterministic=mode == "sust")
        cost += steps
        curves[mode].append((point["steps"], preview))
        return passed

    for _ in iterations(module, data, clip):
        updates += data.updates
        counters = data.counters
        progress.steps = counters["env_steps"]
        if progress.steps - evaluated >= EVERY:
            evaluated = progress.steps
            point = {"steps": float(evaluated), "labels": float(counters["labels"]), "updates": float(updates)}
            candidates[count] = point, {name: x.clone() for name, x in module.policy.state_dict().items()}
            count += 1
            for mode in MODES:
                if mode not in solved_at and (first := streaks[mode].search(count, partial(passes, mode))) is not None:
                    solved_at[mode] = candidates[first][0]
                    progress.solved[mode] = solved_at[mode]["steps"]
                first_open = candidates.get(streaks[mode].start)
                progress.open[mode] = point["steps"] if first_open is None else first_open[0]["steps"]
            needed = min((streaks[mode].start for mode in MODES if mode not in solved_at), default=count)
            candidates = {i: candidate for i, candidate in candidates.items() if i >= needed}
            watch()
        if len(solved_at) == len(MODES) or progress.steps >= budget + TIMES * EVERY or progress.stopped:
            break
    nowhere = {"steps": np.inf, "labels": float(data.counters["labels"]), "updates": float(updates)}
    result: dict[str, Any] = {mode: solved_at.get(mode, nowhere) for mode in MODES}
    for mode in MODES:
        if result[mode]["steps"] > budget:
            result[mode] = nowhere
    return result | {
        "curves": curves,
        "decided": progress.steps,
        "evaluation_steps": cost,
        "lost": progress.stopped,
    }


def evaluate(fleet: Fleet, policy: Policy, rng: np.random.Generator, deterministic: bool) -> tuple[bool, float, int]:
    """Whether 10 episodes have a mean of at least 950, the return of the first one, and the number of steps played.

    The other nine episodes are played only while 950 can still be reached, which does not change the verdict.
    """
    simulator = fleet.simulator
    states = simulator.reset(EPISODES, rng)
    allowance = EPISODES * (simulator.time_limit - SOLVED)
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(int(rng.integers(2**63)))
    play = partial(
        fleet.play, SimpleNamespace(policy=policy), horizon=simulator.time_limit, deterministic=deterministic
    )
    _, first = play(states[:PREVIEW], np.zeros(PREVIEW, dtype=np.int64))
    steps = int(first.elapsed.sum())
    allowance -= PREVIEW * simulator.time_limit - steps
    passed = allowance >= 0
    if passed:
        rest = EPISODES - PREVIEW
        _, rest_ended = play(states[PREVIEW:], np.zeros(rest, dtype=np.int64), allowance=allowance)
        steps += int(rest_ended.elapsed.sum())
        passed = (
            bool(rest_ended.over.all()) and rest * simulator.time_limit - int(rest_ended.elapsed.sum()) <= allowance
        )
    torch.set_rng_state(before)
    return passed, float(first.returns.mean()), steps
