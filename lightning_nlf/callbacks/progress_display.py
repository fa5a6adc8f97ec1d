"""Display of the progress of a fit: a bar on a terminal, or lines in a log.

Import this module late, because importing rich is slow.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

REDRAWS = 3  # redraws per second, in addition to one for the clock
PACE_SECONDS = 60.0  # the remaining time is estimated from this recent window


class Pace(ProgressColumn):
    """Elapsed time, and remaining time by the pace of the last minute.

    Iterations can get longer as episodes get longer.
    """

    def __init__(self, total: int | None, first: int) -> None:
        super().__init__()
        self.total, self.began = total, time.monotonic()
        self._recent = deque([(self.began, first)])

    def count(self, iterations: int) -> None:
        """Record the number of finished iterations."""
        now = time.monotonic()
        self._recent.append((now, iterations))
        while len(self._recent) > 2 and now - self._recent[1][0] > PACE_SECONDS:
            self._recent.popleft()

    def times(self) -> str:
        now = time.monotonic()
        text = f"{clock(now - self.began)} elapsed"
        (then, before), (last, finished) = self._recent[0], self._recent[-1]
        if self.total is not None and before < finished < self.total:
            left = (last - then) / (finished - before) * (self.total - finished) - (now - last)
            text += f", {clock(max(left, 0.0))} left"
        return text

    def render(self, task: Task) -> Text:
        return Text(self.times(), style="cyan")  # called at each redraw, even within a long iteration


class _TwoLines(Progress):
    """A bar with a line of text below the bar. Both fit into 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(f"  {task.fields['standing']}", style="dim", no_wrap=True, overflow="ellipsis")


class Bar:
    """Progress bar on a terminal."""

    seconds = 1 / REDRAWS  # time between two calls of `show`

    def __init__(self, name: str, total: int | None, first: int, every_seconds: float) -> None:
        self._pace = Pace(total, first)
        self._progress = _TwoLines(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None, style="grey37", complete_style="blue", finished_style="green"),
            TextColumn("{task.completed:.0f}" + ("" if total is None else "/{task.total:.0f}")),
            self._pace,
            refresh_per_second=1,
            expand=True,
        )
        self._task = self._progress.add_task(name, total=total, completed=first, standing="")
        self._progress.start()

    def show(self, iterations: int, standing: str) -> None:
        self._pace.count(iterations)
        self._progress.update(self._task, completed=iterations, standing=standing, refresh=True)

    def close(self, iterations: int, standing: str) -> None:
        self.show(iterations, standing)
        self._progress.stop()


class Lines:
    """Progress lines in a log."""

    def __init__(self, name: str, total: int | None, first: int, every_seconds: float) -> None:
        self.seconds = every_seconds
        self._name, self._pace = name, Pace(total, first)
        self._last = -1

    def show(self, iterations: int, standing: str) -> None:
        self._last = iterations
        self._pace.count(iterations)
        of = "" if self._pace.total is None else f"/{self._pace.total}"
        print(" · ".join(filter(None, (f"{self._name} {iterations}{of}", standing, self._pace.times()))), flush=True)

    def close(self, iterations: int, standing: str) -> None:
        if iterations != self._last:
            self.show(iterations, standing)


def table(title: str, values: Mapping[str, float]) -> None:
    """Print names and numbers as a table. On a terminal, the table has a frame."""
    grid = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    grid.add_column()
    grid.add_column(justify="right")
    for name, value in values.items():
        whole = isinstance(value, int)
        grid.add_row(name, f"{value:,}" if whole else f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4g}")
    Console().print(grid)


def clock(seconds: float) -> str:
    """A duration as text: 67 is `0:01:07`."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
