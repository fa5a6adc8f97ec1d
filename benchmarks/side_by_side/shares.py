"""Profiler that attributes the time of a call to labelled functions within it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any


class Shares:
    """Seconds by label; the time of a nested timed call counts only for its own label."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._within: list[float] = []

    def timed(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            self._within.append(0.0)
            try:
                result = function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - started
                self.seconds[label] += spent - self._within.pop()
                if self._within:
                    self._within[-1] += spent
            return self._timed_items(result, label) if isinstance(result, Iterator) else result

        return call

    def _timed_items(self, items: Iterator[Any], label: str) -> Iterator[Any]:
        following, end = self.timed(lambda: next(items, end), label), object()
        while (item := following()) is not end:
            yield item
