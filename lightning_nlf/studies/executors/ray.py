"""Run workers as tasks of a Ray cluster (extra `ray`). All nodes have the same disk."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from lightning_nlf.studies.executors import PASSED, words
from lightning_nlf.studies.runs import Run
from lightning_nlf.studies.spec import Study


class Task:
    """A Ray task."""

    def __init__(self, reference: ray.ObjectRef) -> None:
        self.reference = reference

    def poll(self) -> int | None:
        if not ray.wait([self.reference], timeout=0)[0]:
            return None
        try:
            return int(ray.get(self.reference))
        except ray.exceptions.RayError:  # its node or its process died, or it was cancelled
            return 1

    def kill(self) -> None:
        ray.cancel(self.reference)


class Ray:
    """Executor for a Ray cluster. Args: address: `auto` for the cluster of this machine; gpus: share per run."""

    def __init__(self, jobs: int | None = None, threads: int = 1, address: str = "auto", gpus: float = 0) -> None:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        self.slots, self.threads = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads), threads
        # The worker is not started again by Ray, but by the study, which continues it from its last checkpoint.
        self.task: Any = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_task())

    def submit(self, study: Study, run: Run, tags: Mapping[str, str]) -> Task:
        environ = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
        return Task(self.task.remote(words(study, run, tags, self.threads), os.getcwd(), environ))


def _task() -> Any:
    """The remote function, as an inner function, because a node may not find this package before it is in its path."""

    def work(command: Sequence[str], folder: str, environ: Mapping[str, str]) -> int:
        sys.path.insert(0, folder)
        from lightning_nlf.studies import processes

        return processes.run(command, folder, environ)

    return work
