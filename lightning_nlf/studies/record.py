"""The JSON of a study's last report, perhaps committed: its report runs, and how the cell of each arm was chosen.

The file may come from anywhere. Nothing in it runs: its cells count only if they are cells of the present grids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies.rows import check, from_row, loads
from lightning_nlf.studies.runs import Result
from lightning_nlf.studies.spec import Study

_LONGEST = 200  # characters of a reason in a message
_BROKEN = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError)


@dataclass(frozen=True)
class Record:
    """Args: plans: plan of the report runs of each arm; arms, widened: as in `cells.json`."""

    results: tuple[Result, ...] = ()
    plans: Mapping[str, str] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    widened: tuple[Mapping[str, Any], ...] = ()


def file_of(study: Study, suffix: str) -> Path:
    """File of the report: `<results>.md`, or `report.md` in the study's folder."""
    stem = study.results or study.folder / "report"
    return stem.parent / f"{stem.name}.{suffix}"


def read(study: Study) -> Record:
    """The record in the JSON of a study; empty without a file.

    Raises:
        ConfigurationError: The file cannot be read, or is not a report.
    """
    file = file_of(study, "json")
    try:
        return _record(loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Record()
    except _BROKEN as error:
        raise broken(study, f"{type(error).__name__}: {error}") from error


def broken(study: Study, reason: str) -> ConfigurationError:
    """The error that the JSON of a study is not a report."""
    file = file_of(study, "json")
    return ConfigurationError(f"{file}: not a report of a study ({reason[:_LONGEST]}). Restore it or delete it.")


def _record(content: Mapping[str, Any]) -> Record:
    tuning = content.get("tuning", {"arms": {}, "widened": []})  # a report of an earlier version has none
    for name, choice in tuning["arms"].items():
        plan = choice["plan"]
        check(isinstance(choice["cell"], Mapping), f"tuning.arms.{name}.cell is not a mapping")
        check(isinstance(plan["grid"], Mapping) and len(plan["yaml"]) == 2, f"tuning.arms.{name}.plan is damaged")
    for row in tuning["widened"]:
        check(
            all(isinstance(row[key], str) for key in ("arm", "digest")),
            "tuning.widened: an arm or a digest is not a text",
        )
        check(isinstance(row["wider"], bool) and isinstance(row["report_runs"], int), "tuning.widened is damaged")
        check(all(isinstance(part, str) for part in row["changed"]), "tuning.widened: changed is not a list of names")
    plans = content["plans"]
    check(isinstance(plans, Mapping), "plans is not a mapping")
    return Record(tuple(map(from_row, content["runs"])), plans, tuning["arms"], tuple(tuning["widened"]))
