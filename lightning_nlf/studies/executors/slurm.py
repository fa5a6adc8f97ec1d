"""Run workers as Slurm jobs, by submitit (extra `slurm`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import submitit

from lightning_nlf.studies import processes
from lightning_nlf.studies.executors import words
from lightning_nlf.studies.runs import Run
from lightning_nlf.studies.spec import Study


class Job:
    """A Slurm job."""

    def __init__(self, job: submitit.Job[int]) -> None:
        self.job = job

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        # A job that was killed has no result. Submitit has many errors for this, some of them plain RuntimeErrors.
        with contextlib.suppress(Exception):
            return int(self.job.result())
        return 1

    def kill(self) -> None:
        self.job.cancel()


class Slurm:
    """Executor for a Slurm cluster. Each run is one job; all nodes have the same disk.

    Args:
        jobs: Jobs in the queue at a time.
        threads: Cores of a job.
        cluster: `slurm`, or `local` for processes of this machine.
        minutes: Time limit of a job. A run that reaches it is continued in another job.
        parameters: Further parameters of submitit, such as `slurm_partition` and `gpus_per_node`.
    """

    def __init__(
        self,
        jobs: int | None = None,
        threads: int = 1,
        cluster: str = "slurm",
        minutes: int = 24 * 60,
        **parameters: Any,
    ) -> None:
        self.slots, self.threads, self.cluster = jobs or 100, threads, cluster
        self.parameters = {"timeout_min": minutes, "cpus_per_task": threads, **parameters}

    def submit(self, study: Study, run: Run, tags: Mapping[str, str]) -> Job:
        executor = submitit.AutoExecutor(folder=study.folder / "slurm", cluster=self.cluster)
        executor.update_parameters(name=f"{study.name}-{run.arm.replace('/', '-')}", **self.parameters)
        return Job(executor.submit(processes.run, words(study, run, tags, self.threads), os.getcwd(), {}))
