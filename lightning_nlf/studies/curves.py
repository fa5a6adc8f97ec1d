"""Learning curves of a study: median and quartiles over seeds, against a counter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_nlf.studies.runs import Result
from lightning_nlf.studies.scores import figure
from lightning_nlf.studies.spec import Study, budget

STAGE = "report"
PLACES = 80


def limit_of(study: Study, runs: Sequence[Result], counter: str) -> float:
    """Value of a counter up to which the runs of an arm are known: their budget, unless their yaml ended them before.

    With `solved`, it is where the first run ended that was not solved and did not fail. Nothing is known beyond.
    """
    limit = budget(study.arms[runs[0].run.arm], counter, STAGE)
    ends = [max((point.counters.get(counter, 0.0) for point in run.points), default=0.0) for run in runs]
    censored = [
        end
        for run, end in zip(runs, ends, strict=True)
        if study.solved and not run.failure and math.isinf(figure(run, study, counter, STAGE))
    ]
    return min(limit, *censored, max(ends, default=0.0))


def grid(study: Study, by_arm: Mapping[str, Sequence[Result]], counter: str) -> np.ndarray:
    """Values of a counter at which curves are drawn, on a log scale where steps to solve are compared."""
    counts = [p.counters.get(counter, 0) for runs in by_arm.values() for run in runs for p in run.points]
    end = max((limit_of(study, runs, counter) for runs in by_arm.values()), default=1)
    first = min((count for count in counts if count > 0), default=1)
    return np.geomspace(first, end, PLACES) if study.solved and 0 < first < end else np.linspace(0, end, PLACES)


def curve(study: Study, runs: Sequence[Result], counter: str, places: np.ndarray) -> dict[str, list[float]]:
    """Median and quartiles over runs of the last validation before each place, from where all runs have one.

    A run keeps its last value after its end; a failed run then has the worst value.
    """
    places = places[places <= limit_of(study, runs, counter) * (1 + 1e-9)]
    worst = -math.inf if study.higher else math.inf
    values = np.full((len(runs), len(places)), worst)
    begun = np.ones(len(places), dtype=bool)
    for line, run in zip(values, runs, strict=True):
        if not run.points:
            continue  # failed before its first validation
        counts = np.array([point.counters.get(counter, 0) for point in run.points])
        metric = np.array([point.value if math.isfinite(point.value) else worst for point in run.points])
        last = np.searchsorted(counts, places, side="right") - 1
        begun &= last >= 0
        line[:] = metric[np.maximum(last, 0)]
        if run.failure:
            line[places > counts[-1]] = worst
    low, middle, high = np.quantile(values[:, begun], [0.25, 0.5, 0.75], axis=0, method="lower").tolist()
    return {"at": places[begun].tolist(), "median": middle, "low": low, "high": high}
