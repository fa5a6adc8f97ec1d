"""Run workers as processes of this machine."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
from collections.abc import Mapping

from lightning_nlf.studies import processes
from lightning_nlf.studies.executors import words
from lightning_nlf.studies.runs import Run
from lightning_nlf.studies.spec import Study

OUTPUT = "workers.txt"  # errors of workers, in the folder of the study


class Process:
    """A worker process. It ends when the thread that started it ends (Linux)."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        self.process.terminate()
        atexit.register(processes.end, self.process)  # leave no fit behind


class Local:
    """Executor for this machine. Args: jobs: runs at a time; by default as many as its cores hold; threads: per run."""

    def __init__(self, jobs: int | None = None, threads: int = 1) -> None:
        self.slots, self.threads = jobs or max(1, cores() // threads), threads

    def submit(self, study: Study, run: Run, tags: Mapping[str, str]) -> Process:
        study.folder.mkdir(parents=True, exist_ok=True)
        with open(study.folder / OUTPUT, "ab") as output:
            command = words(study, run, tags, self.threads)
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            return Process(processes.start(command, signal.SIGTERM, **streams))


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
