"""Score of a cell over its tuning seeds, and the choice of the best cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median_low
from typing import Any

from lightning_nlf.studies.runs import Result
from lightning_nlf.studies.scores import figure, lower_is_better, worst
from lightning_nlf.studies.spec import Range, Study

_UNSOLVED = 1e30  # Optuna's value of a cell without a finite score
_EDGE = 0.05  # a value of a range within this share of the range is at its edge


@dataclass(frozen=True)
class Score:
    """A cell on its tuning seeds.

    Args:
        value: With `solved`: the geometric mean over the counters of the lower medians of the steps to solve, infinite
            if more than half of the seeds fail. Without: the mean of the metric, infinitely bad if a run failed.
        failures: Number of seeds that failed or were not solved within a budget.
        rest: The same value over the other seeds; infinitely bad if there are none.
        seeds: Number of seeds.
    """

    value: float
    failures: int
    rest: float
    seeds: int

    def rank(self, study: Study) -> tuple[float, int, float]:
        """Order of cells, the best first: by value, then failures, then the value without failures."""
        sign = 1 if lower_is_better(study) else -1
        return sign * self.value, self.failures, sign * self.rest

    def finite(self) -> float:
        """A finite value in the same order, for Optuna: a cell without one is worse the more seeds fail."""
        if math.isfinite(self.value):
            return self.value
        return math.copysign(_UNSOLVED * (1 + self.failures / self.seeds), self.value)


def score(results: Sequence[Result], study: Study) -> Score:
    """Score of a cell from the results of its tuning seeds."""
    rows = [[figure(result, study, counter, "tune") for counter in study.counters] for result in results]
    counted = [i for i in range(len(study.counters)) if not any(math.isnan(row[i]) for row in rows)]
    rows = [[row[i] for i in counted] for row in rows]
    solved = [row for row in rows if all(map(math.isfinite, row))]
    return Score(_value(rows, study), len(rows) - len(solved), _value(solved, study), len(rows))


def _value(rows: Sequence[Sequence[float]], study: Study) -> float:
    """Value of a list of seeds. Args: rows: per seed, its figure at each counter."""
    if not rows or not rows[0]:
        return worst(study)
    columns = list(zip(*rows, strict=True))
    if study.solved is None:
        return fmean([fmean(column) for column in columns])
    medians = [median_low(column) for column in columns]
    return math.inf if math.inf in medians else math.prod(median ** (1 / len(medians)) for median in medians)


def edges(cell: Mapping[str, Any], grid: Mapping[str, Sequence[Any] | Range]) -> list[str]:
    """Which values of a cell are at the edge of their grid: "model.lr 0.02 is the largest". Only numbers have one."""
    return [text for key, value in cell.items() if key in grid and (text := _edge(key, value, grid[key]))]


def _edge(key: str, value: Any, values: Sequence[Any] | Range) -> str:
    if isinstance(values, Range):
        scale = math.log if values.log else float
        share = (scale(value) - scale(values.low)) / (scale(values.high) - scale(values.low))
        end = values.low if share < _EDGE else values.high if share > 1 - _EDGE else None
        name = "smallest" if share < _EDGE else "largest"
        return "" if end is None else f"{key} {value:.4g} is close to the {name}, {end:g}"
    if len(values) < 2 or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values):
        return ""
    if value not in (min(values), max(values)):
        return ""
    return f"{key} {value} is the {'largest' if value == max(values) else 'smallest'}"
