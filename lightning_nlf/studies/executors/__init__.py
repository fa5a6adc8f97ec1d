"""Executors: where the runs of a study are executed. Each run is a process `lightning_nlf.studies.worker`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies.runs import Run
from lightning_nlf.studies.spec import Study

NAMES = ("local", "slurm", "ray")
PACKAGES = {"slurm": "submitit", "ray": "ray"}
PASSED = ("PYTHONPATH", "MLFLOW_", "LIGHTNING_NLF_")  # beginnings of the variables that a run elsewhere gets


class Handle(Protocol):
    """A run that was submitted."""

    def poll(self) -> int | None:
        """Exit code of the worker; None while it runs."""
        ...

    def kill(self) -> None:
        """Ask the worker to end. Does not wait."""
        ...


class Executor(Protocol):
    """Args: slots: number of runs at a time."""

    slots: int

    def submit(self, study: Study, run: Run, tags: Mapping[str, str]) -> Handle: ...


def executor(name: str, jobs: int | None = None, options: Mapping[str, Any] | None = None) -> Executor:
    """The executor with a name of NAMES.

    Args:
        jobs: Number of runs at a time; by default as many as the executor has cores for.
        options: Further arguments of its class.

    Raises:
        ConfigurationError: The name or an option is unknown, or a package is missing.
    """
    try:
        if name == "local":
            from lightning_nlf.studies.executors.local import Local

            return Local(jobs, **(options or {}))
        if name == "slurm":
            from lightning_nlf.studies.executors.slurm import Slurm

            return Slurm(jobs, **(options or {}))
        if name == "ray":
            from lightning_nlf.studies.executors.ray import Ray

            return Ray(jobs, **(options or {}))
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"executor: {name} needs {PACKAGES.get(name, error.name)}; pip install 'lightning_nlf[{name}]'"
        ) from error
    except TypeError as error:
        raise ConfigurationError(f"executor: {name}: {error}") from error
    raise ConfigurationError(f"executor: got {name!r}; choose one of {', '.join(NAMES)}")


def words(study: Study, run: Run, tags: Mapping[str, str], threads: int) -> list[str]:
    """The command of a worker."""
    place = [str(study.file), json.dumps(asdict(run)), str(run.folder(study))]
    options = ["--tags", json.dumps(dict(tags)), "--threads", str(threads)]
    return [sys.executable, "-m", "lightning_nlf.studies.worker", *place, *options]
