"""Progress of a study: runs that are left, and the best score so far of each arm that is being tuned."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

LINES_EVERY = 30.0  # seconds between two lines where there is no terminal


class Display:
    """A bar on a terminal, or a line every half minute in a log.

    Args:
        total: Number of runs of the study, at most.
        finished: Number of runs that had finished before.
    """

    def __init__(self, total: int, finished: int) -> None:
        self.total = total
        self._printed, self._text = 0.0, ""
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True))
            self._task = self._bar.add_task("runs", total=total, completed=finished, text="")
            self._bar.start()

    def show(self, finished: int, running: int, failures: int, best: Mapping[str, float], left: float) -> None:
        """Show the state. Args: best: best tuning score by arm; left: estimated seconds for all other runs."""
        failed = f", {failures} failed" if failures else ""
        scores = "".join(f", {arm} {score:.4g}" for arm, score in best.items())
        tuning = f"; best so far{scores}".replace("far,", "far") if scores else ""
        time_left = f", about {duration(left)} left" if left == left else ""
        text = f"{running} running{failed}{time_left}{tuning}"
        if self._bar:
            self._bar.update(self._task, completed=finished, total=max(self.total, finished), text=text)
        elif text != self._text and time.monotonic() - self._printed > LINES_EVERY:
            print(f"{finished} of {self.total} runs, {text}", file=sys.stderr, flush=True)
            self._printed, self._text = time.monotonic(), text

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
