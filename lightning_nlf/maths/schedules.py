"""Schedules of weights that depend on the number of steps decided so far."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_nlf.numbers import NonNegative, Steps


@dataclass(frozen=True)
class Schedule:
    """A weight c(t), where t is the number of steps decided so far (environment steps, or tokens).

    Constant by default.
    """

    start: NonNegative = 1.0

    def __call__(self, steps: float) -> float:
        return self.start


@dataclass(frozen=True)
class Linear(Schedule):
    """Linear schedule: from `start` to `end` over the first `over` steps, then constant."""

    end: NonNegative = 0.0
    over: Steps = 10_000

    def __post_init__(self) -> None:
        if self.over <= 0:
            raise ValueError(f"over: got {self.over}, must be a number of steps above 0")

    def __call__(self, steps: float) -> float:
        return self.start + (self.end - self.start) * min(steps / self.over, 1.0)


def scheduled(weight: float | Schedule, steps: float) -> float:
    """The value of a weight after `steps`. A plain number is constant."""
    return weight(steps) if isinstance(weight, Schedule) else weight
