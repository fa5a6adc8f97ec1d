"""How the progress of a fit is shown: a bar on a terminal, or lines in a log. Imports rich: only where needed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

REDRAWS = 3  # a second, beside the one for the clock
PACE_SECONDS = 60.0


class Pace(ProgressColumn):
    """Time gone, and left by the pace of the last minute: iterations get longer as episodes do."""

    def __init__(self, total: int | None, first: int) -> None:
        super().__init__()
        self.total, self.began = total, time.monotonic()
        self._recent = deque([(self.began, first)])

    def count(self, done: int) -> None:
        """`done` iterations are over now."""
        now = time.monotonic()
        self._recent.append((now, done))
        while len(self._recent) > 2 and now - self._recent[1][0] > PACE_SECONDS:
            self._recent.popleft()

    def times(self) -> str:
        now = time.monotonic()
        text = f"{clock(now - self.began)} elapsed"
        (then, before), (last, done) = self._recent[0], self._recent[-1]
        if self.total is not None and before < done < self.total:
            left = (last - then) / (done - before) * (self.total - done) - (now - last)
            text += f", {clock(max(left, 0.0))} left"
        return text

    def render(self, task: Task) -> Text:
        return Text(self.times(), style="cyan")  # at each redraw: the clock goes on within a long iteration


class _TwoLines(Progress):
    """The bar, and under it a line of its own: both fit into 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(f"  {task.fields['standing']}", style="dim", no_wrap=True, overflow="ellipsis")


class Bar:
    seconds = 1 / REDRAWS  # between two calls of `show` that are worth it

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

    def show(self, done: int, standing: str) -> None:
        self._pace.count(done)
        self._progress.update(self._task, completed=done, standing=standing, refresh=True)

    def close(self, done: int, standing: str) -> None:
        self.show(done, standing)
        self._progress.stop()


class Lines:
    def __init__(self, name: str, total: int | None, first: int, every_seconds: float) -> None:
        self.seconds = every_seconds
        self._name, self._pace = name, Pace(total, first)
        self._shown = -1

    def show(self, done: int, standing: str) -> None:
        self._shown = done
        self._pace.count(done)
        of = "" if self._pace.total is None else f"/{self._pace.total}"
        print(" · ".join(filter(None, (f"{self._name} {done}{of}", standing, self._pace.times()))), flush=True)

    def close(self, done: int, standing: str) -> None:
        if done != self._shown:
            self.show(done, standing)


def table(title: str, values: Mapping[str, float]) -> None:
    """Prints names and numbers, in a frame on a terminal and plain elsewhere."""
    grid = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    grid.add_column()
    grid.add_column(justify="right")
    for name, value in values.items():
        whole = isinstance(value, int)
        grid.add_row(name, f"{value:,}" if whole else f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4g}")
    Console().print(grid)


def clock(seconds: float) -> str:
    """0:01:07"""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
