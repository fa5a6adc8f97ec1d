"""Score of a run: steps until it is solved, or its metric when a budget is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies.runs import Point, Result
from lightning_nlf.studies.spec import Solved, Study, budget


def figure(result: Result, study: Study, counter: str, stage: str) -> float:
    """Score of a run when the budget of `counter` is spent.

    With `solved`, it is the counter at the first of `in_a_row` validations in a row that reach the threshold. All of
    them must lie within the budget; otherwise the figure is infinite. Without `solved`, it is the mean of the last
    `study.last` validations within the budget. A failed run, or one with a value that is not finite, has the worst
    figure. No run is dropped.

    Args: counter: one of `study.counters`; stage: "tune" or "report".
    Returns: NaN if the runs of this arm do not count `counter`, and steps to solve are asked for.
    Raises: ConfigurationError if the arm has a budget of a counter that its runs do not have.
    """
    points = within_budget(result, study, counter, stage)
    if study.solved is not None:
        if points and counter not in points[0].counters:
            return math.nan
        first = None if result.failure else first_streak(points, study.solved, study.higher)
        return math.inf if first is None else float(points[first].counters[counter])
    values = [point.value for point in points[-study.last :]]
    if result.failure or not values or not all(map(math.isfinite, values)):
        return worst(study)
    return math.fsum(values) / len(values)


def worst(study: Study) -> float:
    """Figure of a failed run: infinite steps, or the worst value of the metric."""
    return -math.inf if study.higher and study.solved is None else math.inf


def lower_is_better(study: Study) -> bool:
    """Whether a lower figure is better: steps to solve, or a metric such as a loss."""
    return study.solved is not None or not study.higher


def within_budget(result: Result, study: Study, counter: str, stage: str) -> tuple[Point, ...]:
    """Validations of a run within the budget of `counter`, in order."""
    limit = budget(study.arms[result.run.arm], counter, stage)
    uncounted = [point for point in result.points if counter not in point.counters]
    if uncounted and math.isfinite(limit):
        names = ", ".join(sorted(uncounted[0].counters)) or "nothing"
        raise ConfigurationError(
            f"{study.file}: budgets.{counter}: the runs of arm {result.run.arm} do not count it. They count {names}. "
            "Choose one of these, or remove the budget."
        )
    return tuple(point for point in result.points if point.counters.get(counter, 0) <= limit)


def first_streak(points: Sequence[Point], solved: Solved, higher: bool) -> int | None:
    """Index of the first of `solved.in_a_row` validations in a row that reach the threshold; None without a streak."""
    length = 0
    for i, point in enumerate(points):
        reached = point.value >= solved.threshold if higher else point.value <= solved.threshold
        length = length + 1 if reached and math.isfinite(point.value) else 0
        if length == solved.in_a_row:
            return i - length + 1
    return None


def judged_point(result: Result, study: Study, counter: str, stage: str) -> Point | None:
    """The validation at which a run is judged: the first of its streak, or its last one within the budget."""
    points = within_budget(result, study, counter, stage)
    first = None if study.solved is None else first_streak(points, study.solved, study.higher)
    return points[-1 if first is None else first] if points else None
