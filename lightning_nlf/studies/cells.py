"""`cells.json`: the chosen cell of each tuned arm, how it was chosen, and what was tuned again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies import record
from lightning_nlf.studies.choice import edges
from lightning_nlf.studies.grids import contains
from lightning_nlf.studies.record import Record
from lightning_nlf.studies.runs import RESULT, digest
from lightning_nlf.studies.spec import Arm, Range, Study, limits
from lightning_nlf.tracking.journal import JOURNAL

FILE = "cells.json"


def plan(study: Study, arm: Arm) -> dict[str, Any]:
    """All that the choice of an arm's cell depends on, as JSON has it."""
    grid = {key: asdict(x) if isinstance(x, Range) else list(x) for key, x in arm.grid.items()}
    solved = None if study.solved is None else asdict(study.solved)
    criterion = [study.metric_of(arm.name), solved, study.higher, study.last]
    rows = {
        "yaml": [list(arm.words), arm.recipe],
        "changes": dict(arm.changes),
        "first": list(study.first),
        "grid": grid,
        "search": asdict(study.search),
        "tuning seeds": list(study.tune),
        "starts": [study.starts[seed] for seed in study.tune],
        "budgets of tuning": limits(arm, "tune"),
        "metric": criterion,
    }
    return json.loads(json.dumps(rows))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the parts of a plan that changed.

    The recipe contains three of them, so that the yaml is named only if its path, flags or content changed, as far as
    one can see.
    """
    names = [name for name in now if before.get(name) != now[name]]
    explained = before["yaml"][0] == now["yaml"][0] and {"changes", "first", "metric"} & {*names}
    return [name for name in names if name != "yaml"] if explained else names


class Cells:
    """The file of a study. It is written in one step, by a process that holds the lock of the tuning."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.file = study.folder / FILE

    def frozen(self, arm: Arm) -> Mapping[str, Any] | None:
        """The record of an arm's choice, if it was made under the present plan."""
        choice = self._choice(arm)
        return choice if choice and choice["plan"] == plan(self.study, arm) else None

    def record(self) -> dict[str, Any]:
        """What the committed JSON says of the tuning: the choice of each arm, and what was tuned again."""
        choices = {arm.name: self._choice(arm) for arm in self.study.arms.values()}
        return {"arms": {name: choice for name, choice in choices.items() if choice}, "widened": self._widened()}

    def freeze(self, arm: Arm, cell: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the choice. Args: rows: all cells, the best first, with their scores."""
        content = self._read()
        now = plan(self.study, arm)
        content["arms"][arm.name] = {"plan": now, "digest": digest(now), "cell": dict(cell), "cells": list(rows)}
        self._write(content)

    def check(self, arm: Arm) -> None:
        """Refuse a plan that changed after report runs of the arm had started.

        Raises:
            ConfigurationError: The plan changed, and nobody has allowed it yet.
        """
        changed = self._late_change(arm)
        if changed:
            raise ConfigurationError(
                f"{self.study.file}: arms.{arm.name}: its {' and '.join(changed['changed'])} changed after "
                f"{_counted(changed['report_runs'])} had started, so the choice would no longer be blind. Undo the "
                "change, or tune again with --widen; the report will say so."
            )

    def widen(self, arm: Arm) -> None:
        """Record that the arm is tuned again after report runs had started; no record if nothing changed."""
        changed = self._late_change(arm)
        if changed:
            content = self._read()
            content["widened"].append(changed)
            self._write(content)

    def remarks(self) -> list[str]:
        """Sentences for the report: which arms were tuned again, and which cells are at an edge of their grid."""
        sentences = [_sentence(row) for row in self._widened()]
        for arm in self.study.arms.values():
            choice = self.frozen(arm)
            for text in edges(choice["cell"], arm.grid) if choice else []:
                sentences.append(f"{arm.name}: the best cell is at the edge of its grid: {text}")
        return sentences

    def _late_change(self, arm: Arm) -> dict[str, Any] | None:
        """A change of the plan after report runs had started, unless it is recorded."""
        now = plan(self.study, arm)
        before = (self._choice(arm) or {}).get("plan", {})
        if before == now or not (before or arm.grid):
            return None
        if any(row["arm"] == arm.name and row["digest"] == digest(now) for row in self._widened()):
            return None
        number = len(report_runs(self.study, arm) | self._committed_runs(arm))
        if not number:
            return None
        changed = differences(before, now) if before else ["grid"]
        grids = before.get("grid", {}), now["grid"]
        wider = changed == ["grid"] and _is_wider(grids[1], grids[0])
        return {"arm": arm.name, "digest": digest(now), "changed": changed, "wider": wider, "report_runs": number}

    @cached_property
    def _committed(self) -> Record:
        """The committed JSON, so that a clone of the repository need not tune again.

        Raises:
            ConfigurationError: It is damaged, or the cell of an arm is not in its grid.
        """
        content = record.read(self.study)
        for name, choice in content.arms.items():
            arm = self.study.arms.get(name)
            if arm and choice["plan"] == plan(self.study, arm) and not contains(arm.grid, choice["cell"]):
                raise record.broken(self.study, f"tuning.arms.{name}.cell is not a cell of its grid")
        return content

    def _choice(self, arm: Arm) -> Mapping[str, Any] | None:
        """The choice of an arm's cell in the folder or in the committed JSON: that of the present plan, if any."""
        now, folder = plan(self.study, arm), self._read()["arms"].get(arm.name)
        committed = self._committed.arms.get(arm.name)
        return committed if committed and (not folder or folder["plan"] != now == committed["plan"]) else folder

    def _widened(self) -> list[Mapping[str, Any]]:
        rows = list(self._committed.widened)
        return [*rows, *(row for row in self._read()["widened"] if row not in rows)]

    def _committed_runs(self, arm: Arm) -> set[str]:
        """Names of the folders in which the committed report runs of an arm were made."""
        runs = [result.run for result in self._committed.results if result.run.arm == arm.name]
        names = {f"{run.name.rpartition('/')[2]}-{self._committed.plans.get(arm.name)}" for run in runs}
        return names if arm.recipe else {name.rpartition("-")[0] for name in names}

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"arms": {}, "widened": []}
        except ValueError:
            raise ConfigurationError(f"{self.file}: not valid JSON; restore it, or delete the study's folder") from None

    def _write(self, content: Mapping[str, Any]) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
        part.replace(self.file)


def report_runs(study: Study, arm: Arm) -> set[str]:
    """Names of the folders of an arm's report runs that have results or validations, of any cell, also in `old`."""
    name = arm.name.replace("/", "-")
    moved = re.compile(rf"\d+-{re.escape(name)}-report-.*")
    folders = [*(study.folder / "runs" / name).glob("report-*")]
    folders += [folder for folder in (study.folder / "old").glob("*") if moved.fullmatch(folder.name)]
    begun = [folder.name for folder in folders if any((folder / file).exists() for file in (RESULT, JOURNAL))]
    return {re.sub(rf"^\d+-{re.escape(name)}-", "", folder) for folder in begun}


def finite(value: float) -> float | None:
    """A number for JSON; None for an infinite one."""
    return value if math.isfinite(value) else None


def _is_wider(grid: Mapping[str, Any], smaller: Mapping[str, Any]) -> bool:
    """Whether a grid has all values of another one."""
    return all(
        isinstance(values, list) and isinstance(grid.get(key), list) and all(value in grid[key] for value in values)
        for key, values in smaller.items()
    )


def _counted(number: int) -> str:
    return f"{number} report run{'' if number == 1 else 's'}"


def _sentence(row: Mapping[str, Any]) -> str:
    verb = "widened" if row["wider"] else "changed"
    return (
        f"{row['arm']}: its {' and '.join(row['changed'])} {'was' if len(row['changed']) == 1 else 'were'} {verb} "
        f"after {_counted(row['report_runs'])} existed, and it was tuned again (--widen)"
    )
