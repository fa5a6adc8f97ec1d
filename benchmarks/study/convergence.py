"""One run of the speed-up study: from a yaml and a seed to the environment steps at which it was solved."""

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
    """How far a run is, for whoever wants to stop it."""

    steps: int = 0
    solved: dict[str, float] = field(default_factory=dict)
    open: dict[str, float] = field(default_factory=dict)  # the step of the first candidate that may yet begin a streak
    stopped: bool = False

    def finish(self, result: dict[str, Any]) -> None:
        """Takes over what `run` returned, now or before."""
        self.steps = result["decided"]
        for mode in MODES:
            if np.isfinite(result[mode]["steps"]) or not result["lost"]:
                self.solved[mode] = result[mode]["steps"]

    def least(self, mode: str) -> float:
        """The step at which `mode` is solved, or a bound below it."""
        return self.solved.get(mode, self.open.get(mode, 0.0))


class FirstStreak:
    """The first of three candidates in a row that pass, from the fewest tests.

    The third is tested first: where it fails, none of the three begins a streak, and two tests are saved.
    """

    def __init__(self, times: int = TIMES) -> None:
        self.times, self.start = times, 0
        self._known: dict[int, bool] = {}

    def search(self, count: int, passes: Callable[[int], bool]) -> int | None:
        """The answer among the first `count` candidates, if it is there; goes on where the last call stopped."""
        while self.start + self.times <= count:
            for i in range(self.start + self.times - 1, self.start - 1, -1):
                if i not in self._known:
                    self._known[i] = passes(i)
                if not self._known[i]:
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
    """Trains until both measures are solved, the budget is spent or `progress.stopped`.

    Environment steps include the expert's and exclude the evaluation's. A policy is a candidate after an iteration if
    at least 100 steps were collected since the last one; the first of three in a row that reach 950 counts.
    Returns: per measure `steps`, inf if unsolved, and the `labels` and optimizer steps by then; and the curve: steps
    and the return of one episode of each kind, where it was evaluated.
    """
    module, data, clip = read(name, changes, seed)
    data.play = fleet.play  # type: ignore[assignment]
    probe = copy.deepcopy(module.policy)
    candidates: dict[int, tuple[dict[str, float], dict[str, torch.Tensor]]] = {}
    streaks = {mode: FirstStreak() for mode in MODES}
    found: dict[str, dict[str, float]] = {}
    curves: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    evaluated = count = updates = cost = 0

    def passes(mode: str, i: int) -> bool:
        nonlocal cost
        here, weights = candidates[i]
        probe.load_state_dict(weights)
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0, VALIDATION, MODES.index(mode), i]))
        passed, preview, steps = evaluate(fleet, probe, rng, deterministic=mode == "sust")
        cost += steps
        curves[mode].append((here["steps"], preview))
        return passed

    for _ in iterations(module, data, clip):
        updates += data.updates
        counters = data.counters
        progress.steps = counters["env_steps"]
        if progress.steps - evaluated >= EVERY:
            evaluated = progress.steps
            here = {"steps": float(evaluated), "labels": float(counters["labels"]), "updates": float(updates)}
            candidates[count] = here, {name: x.clone() for name, x in module.policy.state_dict().items()}
            count += 1
            for mode in MODES:
                if mode not in found and (first := streaks[mode].search(count, partial(passes, mode))) is not None:
                    found[mode] = candidates[first][0]
                    progress.solved[mode] = found[mode]["steps"]
                first_open = candidates.get(streaks[mode].start)
                progress.open[mode] = here["steps"] if first_open is None else first_open[0]["steps"]
            needed = min((streaks[mode].start for mode in MODES if mode not in found), default=count)
            candidates = {i: candidate for i, candidate in candidates.items() if i >= needed}
            watch()
        if len(found) == len(MODES) or progress.steps >= budget + TIMES * EVERY or progress.stopped:
            break
    nowhere = {"steps": np.inf, "labels": float(data.counters["labels"]), "updates": float(updates)}
    result: dict[str, Any] = {mode: found.get(mode, nowhere) for mode in MODES}
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
    """Whether 10 episodes have a mean of at least 950; the first one's return; the steps that it took.

    One episode first, the others only if 950 is still in reach, and until it no longer is: the verdict is the same.
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
        _, others = play(states[PREVIEW:], np.zeros(rest, dtype=np.int64), allowance=allowance)
        steps += int(others.elapsed.sum())
        passed = bool(others.over.all()) and rest * simulator.time_limit - int(others.elapsed.sum()) <= allowance
    torch.set_rng_state(before)
    return passed, float(first.returns.mean()), steps
