"""Runs of a study: name, folder, command, and the validations in the journal."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_nlf.studies.spec import Arm, Study, limits
from lightning_nlf.tracking.journal import JOURNAL, read_records

RESULT = "result.json"
STOP = "lightning_nlf.callbacks.StopWhenSpent"


@dataclass(frozen=True)
class Run:
    """One fit of a study. Args: stage: "tune" or "report"; cell: the chosen values of the arm's grid."""

    arm: str
    stage: str
    cell: Mapping[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """Path of its folder below `runs`, such as `joint-fifty/tune-3f2a91c0-seed4`."""
        return f"{self.arm.replace('/', '-')}/{self.stage}-{digest(self.cell)}-seed{self.seed}"

    @property
    def title(self) -> str:
        """Its name in MLflow, such as `joint, lr 0.01, tuning seed 4`."""
        cell = "".join(f", {key.rpartition('.')[2]} {value}" for key, value in self.cell.items())
        return f"{self.arm}{cell}, {'tuning ' if self.stage == 'tune' else ''}seed {self.seed}"

    def folder(self, study: Study) -> Path:
        """Its folder: the name, and a digest of the arm's recipe and budgets if the study was read from a file."""
        arm = study.arms[self.arm]
        return study.folder / "runs" / (f"{self.name}-{plan(arm, self.stage)}" if arm.recipe else self.name)


@dataclass(frozen=True)
class Point:
    """One validation. Args: counters: values at that time, and the metrics in `also`; value: the study's metric."""

    counters: Mapping[str, float]
    value: float


@dataclass(frozen=True)
class Result:
    """A run that has ended.

    Args:
        run: The run.
        points: Its validations, in order.
        failure: Why it failed, in one line; empty if it did not.
        seconds: Time of training.
        machine: Kind of CPU and number of cores.
        commit: Commit of the code; empty outside a repository.
    """

    run: Run
    points: tuple[Point, ...]
    failure: str = ""
    seconds: float = 0.0
    machine: str = ""
    commit: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `result.json` in one step, so that no other process reads half of it."""
        file = folder / RESULT
        part = file.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.replace(file)


def load(folder: Path) -> Result | None:
    """The result of a run folder; None if the run has not ended."""
    try:
        return from_json(json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def from_json(row: Mapping[str, Any]) -> Result:
    points = tuple(Point(**point) for point in row["points"])
    return Result(**{**row, "run": Run(**row["run"]), "points": points})


def digest(cell: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a cell."""
    return hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:8]


def plan(arm: Arm, stage: str) -> str:
    """Digest of what the runs of an arm do in a stage: its recipe and its budgets."""
    return digest({"recipe": arm.recipe, **limits(arm, stage)})


def command(run: Run, study: Study, tags: Mapping[str, str] | None = None) -> list[str]:
    """The command of a run: a fit in the run's folder, with the changes of its arm and the values of its cell.

    The fit ends when the budgets of its stage are spent, or when the task is solved. Without either, it ends by its
    yaml.

    Args: tags: Tags of the run in MLflow.
    """
    arm: Arm = study.arms[run.arm]
    words = [sys.executable, "-m", "lightning_nlf", "fit", *arm.words]
    words += [f"--{key}={json.dumps(value)}" for key, value in {**arm.changes, **run.cell}.items()]
    words += [f"--seed_everything={run.seed}", f"--run_dir={run.folder(study)}"]
    words += ["--trainer.enable_progress_bar=false", *_ending(arm, run.stage, study)]
    if tags:
        words += [f"--trainer.logger.tags={json.dumps(tags)}", f"--trainer.logger.run_name={json.dumps(run.title)}"]
    return [in_place(word, study, run.seed) for word in words]


def _ending(arm: Arm, stage: str, study: Study) -> list[str]:
    """Flags of the callback that ends a fit."""
    finite = {name: limit for name, limit in limits(arm, stage).items() if math.isfinite(limit)}
    values: dict[str, Any] = {"budgets": finite}
    if study.solved is not None:
        values |= {"threshold": study.solved.threshold, "in_a_row": study.solved.in_a_row}
        values |= {"monitor": arm.metric or study.metric, "mode": "max" if study.higher else "min"}
    if len(values) == 1 and not finite:
        return []
    return [f"--trainer.callbacks+={json.dumps({'class_path': STOP, 'init_args': values})}"]


def in_place(text: str, study: Study, seed: int) -> str:
    """A text with `{study}`, `{start}` and `{seed}` replaced."""
    values = {"study": study.folder, "start": study.starts[seed], "seed": seed}
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def points(folder: Path, metric: str, also: Sequence[str] = ()) -> tuple[Point, ...]:
    """All validations in the journal of a run folder that log `metric`, in order, with further metrics.

    The counters of a validation stand in the next record of the same step. A run that was resumed may have written a
    validation twice; the later one counts.
    """
    values: dict[int, float] = {}
    counters: dict[int, dict[str, float]] = {}
    further: dict[int, dict[str, float]] = {}
    for record, _ in read_records(folder / JOURNAL):
        if record["kind"] != "metrics":
            continue
        step, logged = int(record["step"]), record["values"]
        if metric in logged:
            values[step] = float(logged[metric])
            further[step] = {name: float(logged[name]) for name in also if name in logged}
        if "iteration" in logged:
            counters[step] = {name: float(value) for name, value in logged.items() if "/" not in name}
    return tuple(
        Point({**counters[step], "optimizer_steps": step + 1, **further[step]}, value)
        for step, value in sorted(values.items())
        if step in counters
    )
