"""Figures of a report: medians, comparisons with the baseline, learning curves and aggregates over settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lightning_nlf.studies import scores
from lightning_nlf.studies.aggregates import interquartile_mean, probability_of_improvement
from lightning_nlf.studies.comparison import (
    LEVEL,
    Comparison,
    paired_difference,
    paired_ratio,
    probability_better,
    simultaneous,
)
from lightning_nlf.studies.curves import STAGE, curve, grid, limit_of
from lightning_nlf.studies.runs import Result
from lightning_nlf.studies.spec import Study
from lightning_nlf.studies.statistics import Interval


@dataclass(frozen=True)
class ArmFigures:
    """An arm at one counter.

    Args:
        figures: Figure of each seed.
        median, quartiles: Order statistics at or below the place, which may be infinite.
        unsolved: Number of runs that did not solve the task within the budget; 0 without `solved`.
        failures: Number of runs that failed, or whose metric is not finite.
        limit: Budget of the counter; without one, the largest value that a run reached.
        spent: Median of each other counter and further metric when the runs are judged.
    """

    figures: Mapping[int, float]
    median: float
    quartiles: tuple[float, float]
    unsolved: int
    failures: int
    limit: float
    spent: Mapping[str, float]


@dataclass(frozen=True)
class Aggregate:
    """A method over all of its settings."""

    method: str
    counter: str
    settings: tuple[str, ...]
    mean: Interval
    improvement: Interval | None


@dataclass(frozen=True)
class Summary:
    """Everything that a report shows. `arms` and `curves` are by counter, then by arm."""

    arms: Mapping[str, Mapping[str, ArmFigures]]
    comparisons: Sequence[Comparison]
    planned: int
    curves: Mapping[str, Mapping[str, Mapping[str, list[float]]]]
    aggregates: Sequence[Aggregate] = field(default_factory=tuple)

    def comparison(self, arm: str, counter: str) -> Comparison | None:
        return next((c for c in self.comparisons if (c.arm, c.counter) == (arm, counter)), None)


def summarize(study: Study, results: Sequence[Result]) -> Summary:
    """Figures of the report runs. Args: results: any order; only those of report seeds count."""
    by_arm = {
        name: sorted((r for r in results if r.run.arm == name and r.run.stage == STAGE), key=lambda r: r.run.seed)
        for name in study.arms
    }
    by_arm = {name: runs for name, runs in by_arm.items() if runs}
    arms = {
        counter: {name: arm_figures(study, runs, counter) for name, runs in by_arm.items()}
        for counter in study.counters
    }
    planned = len(study.counters) * len([name for name in study.arms if baseline_of(study, name)])
    compared = [
        comparison
        for counter, figures in arms.items()
        for name in figures
        if (comparison := compare(study, figures, name, counter, planned))
    ]
    places = {counter: grid(study, by_arm, counter) for counter in study.counters}
    curves = {
        counter: {name: curve(study, runs, counter, places[counter]) for name, runs in by_arm.items()}
        for counter in study.counters
    }
    aggregates = [] if study.solved else [a for c in arms for a in aggregates_of(study, arms[c], c)]
    return Summary(arms, compared, planned, curves, aggregates)


def baseline_of(study: Study, arm: str) -> str:
    """Name of the arm's baseline; empty for an arm without one, such as the baseline itself."""
    name = study.baselines.get(arm, "")
    return "" if name == arm else name


def method_of(study: Study, arm: str) -> str:
    """Name of an arm without its setting."""
    setting = study.arms[arm].setting
    return arm.removesuffix(f"/{setting}") if setting else arm


def arm_figures(study: Study, runs: Sequence[Result], counter: str) -> ArmFigures:
    figures = {run.run.seed: scores.figure(run, study, counter, STAGE) for run in runs}
    low, middle, high = np.quantile(list(figures.values()), [0.25, 0.5, 0.75], method="lower").tolist()
    points = [point for run in runs if (point := scores.judged_point(run, study, counter, STAGE))]
    names = dict.fromkeys(name for point in points for name in point.counters if name not in (counter, "iteration"))
    broken = [bool(run.failure) or _worst_metric(study, figures[run.run.seed]) for run in runs]
    return ArmFigures(
        figures,
        middle,
        (low, high),
        sum(math.isinf(x) for x in figures.values()) if study.solved else 0,
        sum(broken),
        limit_of(study, runs, counter),
        {name: float(np.median([p.counters[name] for p in points if name in p.counters])) for name in names},
    )


def _worst_metric(study: Study, figure: float) -> bool:
    return study.solved is None and figure == scores.worst(study)


def compare(
    study: Study, figures: Mapping[str, ArmFigures], name: str, counter: str, comparisons: int
) -> Comparison | None:
    """An arm against its baseline; None without a baseline, a common seed, or a count of the steps."""
    base = baseline_of(study, name)
    if base not in figures:
        return None
    a, b = figures[name], figures[base]
    seeds = [seed for seed in a.figures if seed in b.figures]
    arm, baseline = ([x.figures[seed] for seed in seeds] for x in (a, b))
    if not seeds or any(map(math.isnan, arm + baseline)):
        return None
    starts = _starts(study, seeds)
    levels = (LEVEL, simultaneous(comparisons))
    if study.solved:
        effect, together = paired_ratio(arm, baseline, starts, levels, (a.limit, b.limit))
        end = min(a.limit, b.limit)  # where one run has spent its budget, the other cannot be told from it
        arm, baseline = ([x if x <= end else math.inf for x in steps] for steps in (arm, baseline))
    else:
        effect, together = paired_difference(arm, baseline, starts, levels)
    better = probability_better(arm, baseline, starts, scores.lower_is_better(study))
    return Comparison(name, base, counter, len(seeds), len(set(starts)), effect, together, better)


def aggregates_of(study: Study, figures: Mapping[str, ArmFigures], counter: str) -> list[Aggregate]:
    """Methods that stand in at least two settings, over these settings."""
    methods: dict[str, list[str]] = {}
    for name in figures:
        methods.setdefault(method_of(study, name), []).append(name)
    return [aggregate(study, figures, counter, method, arms) for method, arms in methods.items() if len(arms) > 1]


def aggregate(
    study: Study, figures: Mapping[str, ArmFigures], counter: str, method: str, arms: Sequence[str]
) -> Aggregate:
    """A method over its arms, one per setting; without `improvement` if one of them has no baseline or no pair."""
    columns = [figures[arm].figures for arm in arms]
    mean = interquartile_mean([[*column.values()] for column in columns], [_starts(study, c) for c in columns])
    settings = tuple(study.arms[arm].setting for arm in arms)
    bases = [baseline_of(study, arm) for arm in arms]
    pairs = [
        {seed: (x, figures[base].figures[seed]) for seed, x in column.items() if seed in figures[base].figures}
        for column, base in zip(columns, bases, strict=True)
        if base in figures
    ]
    if len(pairs) < len(arms) or not all(pairs):
        return Aggregate(method, counter, settings, mean, None)
    arm, baseline = ([[pair[side] for pair in setting.values()] for setting in pairs] for side in (0, 1))
    starts = [_starts(study, setting) for setting in pairs]
    improvement = probability_of_improvement(arm, baseline, starts, scores.lower_is_better(study))
    return Aggregate(method, counter, settings, mean, improvement)


def _starts(study: Study, seeds: Iterable[int]) -> list[int]:
    return [study.starts[seed] for seed in seeds]
