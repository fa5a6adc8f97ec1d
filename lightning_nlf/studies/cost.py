"""Cost of a study: the number of its runs, and the hours that they take, from a short timed run of each arm."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lightning_nlf.studies import runs
from lightning_nlf.studies.first import run_first
from lightning_nlf.studies.runs import Result, Run
from lightning_nlf.studies.spec import Range, Study, budget
from lightning_nlf.tracking.journal import JOURNAL, read_records

FILE = "cost.json"
PROBE_SECONDS = 10.0  # of training, per arm
NOWHERE = "http://127.0.0.1:9"  # no server answers here, so that MLflow has no timed runs
OUTPUT = "output.txt"
PATIENCE = 300.0  # seconds until a timed run that does not train is given up


@dataclass(frozen=True)
class Pace:
    """Seconds of a run of one arm. Args: start: before training; per: seconds per unit of each counter."""

    start: float
    per: Mapping[str, float]
    iterations: float = math.inf  # limit of the yaml

    def seconds(self, limits: Mapping[str, float]) -> float:
        """Longest time of a run that ends when all these limits are reached, or the yaml ends it."""
        spent = [limit * self.per[name] for name, limit in limits.items() if name in self.per]
        whole = self.iterations * self.per.get("iteration", math.inf)
        return self.start + min(max(spent, default=math.inf), whole)


def counted(study: Study, cells: Mapping[str, object]) -> Iterator[tuple[str, str, int]]:
    """(arm, stage, number of runs) of a whole study. Args: cells: arms that have been tuned."""
    for name, arm in study.arms.items():
        if arm.grid and name not in cells:
            yield name, "tune", len(study.tune) * most_cells(study, name)
        yield name, "report", len(study.report)


def most_cells(study: Study, arm: str) -> int:
    """Number of cells of an arm, at most."""
    grid = study.arms[arm].grid
    if study.search.sampler != "grid":
        return study.search.cells or 0
    return math.prod(1 if isinstance(values, Range) else len(values) for values in grid.values())


def paces(study: Study, arms: list[str], jobs: int) -> dict[str, Pace]:
    """Pace of each arm. Timed runs are made once and kept in `cost.json` of the study's folder."""
    table = _read_paces(study)
    missing = untimed(study, arms)
    for i in range(0, len(missing), jobs):
        probes = [Probe(study, name) for name in missing[i : i + jobs]]
        table |= {_key(study, probe.arm): pace for probe in probes if (pace := probe.pace())}
    file = study.folder / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({key: vars(pace) for key, pace in table.items()}))
    return {name: table[_key(study, name)] for name in study.arms if _key(study, name) in table}


def untimed(study: Study, arms: list[str]) -> list[str]:
    """Arms without a pace in `cost.json`."""
    table = _read_paces(study)
    return [name for name in arms if _key(study, name) not in table]


def _key(study: Study, arm: str) -> str:
    """Name of an arm and digest of what it runs, because a changed yaml has another pace."""
    return f"{arm} {study.arms[arm].recipe}"


def _read_paces(study: Study) -> dict[str, Pace]:
    file = study.folder / FILE
    rows = json.loads(file.read_text()) if file.is_file() else {}
    return {key: Pace(**row) for key, row in rows.items()}


def probe_folder(study: Study, arm: str) -> Path:
    return study.folder / "probes" / arm.replace("/", "-")


class Probe:
    """A fit of one arm that is stopped after PROBE_SECONDS of training. Its metric is not read."""

    def __init__(self, study: Study, arm: str) -> None:
        self.arm = arm
        self.folder = probe_folder(study, arm)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        grid = study.arms[arm].grid
        cell = {key: values.low if isinstance(values, Range) else values[0] for key, values in grid.items()}
        run = Run(arm, "tune", cell, (study.tune or study.report)[0])
        words = [word for word in runs.command(run, study) if not word.startswith("--run_dir=")]
        self._environ = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": NOWHERE}
        run_first(study, run.seed, self._run)  # after a failure here, the runs of the study say why
        self.began = time.time()
        with (self.folder / OUTPUT).open("wb") as output:
            words.append(f"--run_dir={self.folder}")
            self.process = subprocess.Popen(words, stdout=output, stderr=output, env=self._environ)

    def _run(self, words: Sequence[str], output: Path) -> str:
        with output.open("ab") as file:
            return "failed" if subprocess.run(words, stdout=file, stderr=file, env=self._environ).returncode else ""

    def pace(self) -> Pace | None:
        """Wait for the end of the timed run. None if it did not train."""
        try:
            while self.process.poll() is None and not self._is_enough():
                time.sleep(0.5)
        finally:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait()
        records = list(self._counters())
        (self.folder / JOURNAL).unlink(missing_ok=True)  # so that `tracking sync` does not send it to MLflow
        if not records:
            return None
        last_time, last = records[-1]
        first_time, first = records[0] if len(records) > 1 else (self.began, dict.fromkeys(last, 0.0))
        per = {
            name: (last_time - first_time) / (value - first.get(name, 0.0))
            for name, value in last.items()
            if value > first.get(name, 0.0)
        }
        start = max(0.0, first_time - self.began - first["iteration"] * per.get("iteration", 0.0))
        return Pace(start, per, self._iterations())

    def _is_enough(self) -> bool:
        records = list(self._counters())
        waited = time.time() - self.began
        return waited > PATIENCE if len(records) < 2 else records[-1][0] - records[0][0] > PROBE_SECONDS

    def _counters(self) -> Iterator[tuple[float, dict[str, float]]]:
        if not (self.folder / JOURNAL).is_file():
            return
        for record, _ in read_records(self.folder / JOURNAL):
            if record["kind"] == "metrics" and "iteration" in record["values"]:
                values = {name: float(value) for name, value in record["values"].items() if "/" not in name}
                yield record["time"] / 1000, {**values, "optimizer_steps": record["step"] + 1.0}

    def _iterations(self) -> float:
        """`trainer.max_epochs` of the run; infinite if it has no such end."""
        file: Path = self.folder / "config.yaml"
        config = yaml.safe_load(file.read_text()) if file.is_file() else {}
        last = config.get("trainer", {}).get("max_epochs")
        return float(last) if last and last > 0 else math.inf


def seconds(study: Study, arm: str, stage: str, paces: Mapping[str, Pace], results: list[Result]) -> float:
    """Seconds of one run of an arm: the mean of its finished runs, else at most what its pace gives."""
    times = [result.seconds for result in results if (result.run.arm, result.run.stage) == (arm, stage)]
    if times:
        return statistics.fmean(times)
    limits = {name: budget(study.arms[arm], name, stage) for name in study.counters}
    return paces[arm].seconds(limits) if arm in paces else math.nan
