"""Rows of a benchmark table, and processes that are bound to some cores for measurements."""

from __future__ import annotations

import os
import resource
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from typing import Any

from lightning_nlf.cli.memory import keep_freed_memory


@dataclass(frozen=True)
class Row:
    """One line of a table, for a number of cores; `call` returns {"value": …} for each repeat."""

    name: str  # section/row
    title: str
    call: str  # module.function of `benchmarks`
    seconds: float  # expected duration of a call
    cores: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)
    times: int = 1  # calls per repeat; 0: a single call in total

    @property
    def section(self) -> str:
        return self.name.split("/")[0]

    @property
    def key(self) -> str:
        return f"{self.name}@{self.cores}"

    @property
    def process(self) -> tuple[str, int]:
        """Module and number of cores, which identify the process."""
        return self.call.split(".")[0], self.cores

    def calls(self, repeats: int) -> int:
        return repeats * self.times or 1


class Pinned:
    """Process bound to `cores` cores that calls functions of `benchmarks`.

    It has one OpenMP thread, like the command line for small networks; a function may set more. Freed memory stays with
    the process, like in the command line, also for peers. The process lives until `close`, so that imports are not
    measured, and sleeps between calls.
    """

    def __init__(self, cores: int) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _pin, (cores,))

    def __call__(self, function: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a function. Args: function: "module.function"."""
        return self._pool.submit(_call, function, arguments).result()

    def close(self) -> None:
        self._pool.shutdown()


def peak_memory() -> dict[str, float]:
    """Peak memory of this process, MiB."""
    return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _pin(cores: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["OMP_NUM_THREADS"] = "1"  # must be set before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # like the command line
    keep_freed_memory()


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    module, function = name.split(".")
    return getattr(import_module(f"benchmarks.side_by_side.{module}"), function)(**arguments)
