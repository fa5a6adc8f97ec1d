"""What a fit is about to do, in one line: rows, tokens and optimizer steps, and about how long they take."""

from __future__ import annotations

import math
import time

import lightning as L

from lightning_nlf.data_source import data_source

STEPS = 3  # optimizer steps that are timed; the first of them is not, as it is slower


class Plan:
    """Times the first optimizer steps of a fit.

    Args: name: of the run; least: seconds that the fit must take to be worth the line.
    """

    def __init__(self, name: str, least: float = 10.0) -> None:
        self._name, self._least = name, least
        self._first: int | None = None  # optimizer steps before this fit
        self._since = 0.0

    def batch_begins(self, trainer: L.Trainer) -> None:
        """The first one after an optimizer step that was not timed starts the clock."""
        if self._first is None:
            self._first = trainer.global_step
        elif not self._since and trainer.global_step > self._first:
            self._since = time.perf_counter()

    def line(self, trainer: L.Trainer) -> str | None:
        """The line, once `STEPS` steps are done; None before, and of a fit without an end or that is over soon."""
        done = trainer.global_step - (self._first or 0)
        steps = steps_in_all(trainer)
        if done < STEPS or not self._since or steps is None:
            return None
        seconds = (time.perf_counter() - self._since) / (done - 1) * (steps - trainer.global_step)
        if seconds < self._least:
            return None
        counters = data_source(trainer).counters
        epochs = trainer.current_epoch + 1
        parts = [f"{round(counters[key] / epochs):,} {key}" for key in ("rows", "tokens") if counters.get(key)]
        from lightning_nlf.callbacks.progress_display import clock

        each = f"{' and '.join(parts)} an epoch, " if parts else ""
        return f"{self._name}: {each}{steps:,} optimizer steps · about {clock(seconds)} left"


def steps_in_all(trainer: L.Trainer) -> int | None:
    """Optimizer steps of the whole fit, None where it has no end."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) and steps > 0 else None
