"""The yaml of a study: arms, settings, seeds, budgets, and the metric that decides.

baseline: reinforce
metric: val/return
solved: {at_least: 950, in_a_row: 3}
budgets: {env_steps: 40000}
seeds: {tune: 0-9, report: 1000-1019}
arms:
  reinforce:
    yaml: conf/pendulum/reinforce.yaml
    grid: {model.lr: [0.005, 0.01, 0.02], data.episodes: [1, 2]}
  joint: conf/pendulum/joint.yaml

An arm is a yaml, perhaps with flags of `fit` behind it, or a mapping with `yaml`, `changes`, `grid`, `budgets`,
`tune_budgets` and `settings`. `settings` at the top gives each setting's changes for all arms; an arm then has one row
per setting, `joint/fifty`. `settings` of an arm are the names of its settings, or a mapping from these names to other
values of the arm's keys in this setting: `changes` and `budgets` are merged key by key, the others replace the arm's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("none", "median", "halving", "hyperband")
COUNTERS = ("env_steps", "tokens", "optimizer_steps", "feedback_calls", "expert_steps", "labels", "iteration")
FOLDER = Path("outputs/studies")


@dataclass(frozen=True)
class Solved:
    """A run is solved at the first of `in_a_row` validations whose metric is at least (or at most) `threshold`."""

    threshold: float
    in_a_row: int = 1


@dataclass(frozen=True)
class Range:
    """A continuous range of a key, for the samplers `random` and `tpe`: [low, high], perhaps on a log scale."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Search:
    """How the cell of an arm is chosen on the tuning seeds.

    Args:
        sampler: One of SAMPLERS. `grid` runs all combinations.
        cells: Number of cells per arm, for `random` and `tpe`.
        pruner: One of PRUNERS. It sees a cell's score after each tuning seed, and can drop the cell's other seeds.
    """

    sampler: str = "grid"
    cells: int | None = None
    pruner: str = "none"


@dataclass(frozen=True)
class Arm:
    """One row of the report: a yaml with changed keys, in one setting.

    Args:
        name: `joint`, or `joint/fifty` in a study with settings.
        words: Arguments of `fit` that name the yaml, such as ("--config", "conf/pendulum/joint.yaml").
        changes: Changed values by dotted key. Strings may contain `{study}`, `{start}` and `{seed}`.
        grid: Values to choose from, by dotted key; empty for an arm that is not tuned.
        budgets: Limit of each counter; None: as far as the yaml goes.
        tune_budgets: Limits of the tuning runs.
        recipe: Digest of all that a run depends on except its cell, seed and budgets: flags, content of the yaml,
            changes. It is part of the names of run folders, so that no run of an earlier recipe counts.
        metric: Name of the study's metric in the runs of this arm, if it has another name there.
    """

    name: str
    words: tuple[str, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any] | Range] = field(default_factory=dict)
    budgets: Mapping[str, float] = field(default_factory=dict)
    tune_budgets: Mapping[str, float] = field(default_factory=dict)
    setting: str = ""
    recipe: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Study:
    """A checked study.

    Args:
        name: Stem of the file.
        folder: `outputs/studies/<name>`: runs, book-keeping and the report.
        baselines: Name of the baseline arm of each arm.
        metric: A validation metric in the journal of a run.
        higher: Whether a higher metric is better.
        last: Without `solved`, a run's figure is the mean of its last this many validations within the budget.
        tune, report: Seeds. They have no seed in common.
        starts: Start of each seed: the first seed of its start. Without `starts` in the yaml, each seed is one.
        first: Commands of `python -m lightning_nlf` or another module, run before the runs: once per start if they
            contain `{start}` or `{seed}`, else once. A `fit` or `predict` has a `--run_dir`, with `{start}` if it is
            run for several starts.
        results: Path of committed results without suffix; None: in `folder`.
        also: Further metrics of a validation that the report shows, without comparing them.
    """

    name: str
    file: Path
    folder: Path
    arms: Mapping[str, Arm]
    baselines: Mapping[str, str]
    metric: str
    tune: tuple[int, ...]
    report: tuple[int, ...]
    starts: Mapping[int, int]
    higher: bool = True
    last: int = 1
    solved: Solved | None = None
    first: tuple[str, ...] = ()
    search: Search = Search()
    results: Path | None = None
    also: tuple[str, ...] = ()

    def metric_of(self, arm: str) -> str:
        """Name of the metric in the runs of an arm."""
        return self.arms[arm].metric or self.metric

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of the counters that have a budget, in the order of the yaml; `iteration` if there is none."""
        names = dict.fromkeys(name for arm in self.arms.values() for name in arm.budgets)
        return tuple(names) or ("iteration",)


def budget(arm: Arm, counter: str, stage: str) -> float:
    """Limit of a counter in the runs of a stage ("tune" or "report"); infinite without one."""
    return limits(arm, stage).get(counter, math.inf)


def limits(arm: Arm, stage: str) -> dict[str, float]:
    """Limits of all counters that have one in the runs of a stage ("tune" or "report")."""
    return {**arm.budgets, **(arm.tune_budgets if stage == "tune" else {})}
