"""Numbers that move with experience."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_nlf.numbers import NonNegative, Steps


@dataclass(frozen=True)
class Schedule:
    """A number that moves with experience: c(t) for t steps decided so far (environment steps, or tokens)."""

    start: NonNegative

    def __call__(self, steps: float) -> float:
        return self.start


@dataclass(frozen=True)
class Linear(Schedule):
    """From `start` to `end` in a straight line over the first `over` steps, then `end`."""

    end: NonNegative = 0.0
    over: Steps = 10_000

    def __post_init__(self) -> None:
        if self.over <= 0:
            raise ValueError(f"over is {self.over}: give the number of steps, above 0")

    def __call__(self, steps: float) -> float:
        return self.start + (self.end - self.start) * min(steps / self.over, 1.0)


def scheduled(weight: float | Schedule, steps: float) -> float:
    """The weight after `steps`: a plain number stays."""
    return weight(steps) if isinstance(weight, Schedule) else weight
