"""A measurement, and a process of its own for it, held to some cores of this machine."""

from __future__ import annotations

import os
import resource
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from typing import Any

from lightning_nlf.cli.memory import keep_freed


@dataclass(frozen=True)
class Row:
    """One line of a table, on one number of cores; `call` gives {"value": …} for each repeat."""

    name: str  # section/row
    title: str
    call: str  # module.function of `benchmarks`
    seconds: float  # of one call, expected
    cores: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)
    times: int = 1  # calls a repeat; 0: one call in all

    @property
    def section(self) -> str:
        return self.name.split("/")[0]

    @property
    def key(self) -> str:
        return f"{self.name}@{self.cores}"

    @property
    def process(self) -> tuple[str, int]:
        """Module and cores."""
        return self.call.split(".")[0], self.cores

    def calls(self, repeats: int) -> int:
        return repeats * self.times or 1


class Pinned:
    """Calls functions of `benchmarks` in a fresh process on `cores` cores with one OpenMP thread, as the command line
    gives small networks; who wants more sets them. Memory is kept as the command line has it, for peers too.

    It lives until `close`, so that what is imported once is not measured, and sleeps between two calls.
    """

    def __init__(self, cores: int) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _pin, (cores,))

    def __call__(self, function: str, /, **arguments: Any) -> dict[str, Any]:
        """`function`: "module.function"."""
        return self._pool.submit(_call, function, arguments).result()

    def close(self) -> None:
        self._pool.shutdown()


def peak_memory() -> dict[str, float]:
    """Of this process since it began, MiB."""
    return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _pin(cores: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, which it is not yet
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
    keep_freed()


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    module, function = name.split(".")
    return getattr(import_module(f"benchmarks.side_by_side.{module}"), function)(**arguments)
