"""Report of a study: Markdown, JSON and a picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_nlf.studies.record import file_of, read
from lightning_nlf.studies.rows import dumps, from_row, rounded, row
from lightning_nlf.studies.runs import Result, digest, plan
from lightning_nlf.studies.spec import Study

if TYPE_CHECKING:
    from lightning_nlf.studies.summary import Summary

FORMAT = 2


def write(
    study: Study,
    results: Sequence[Result],
    cells: Mapping[str, Mapping[str, Any] | None],
    remarks: Sequence[str],
    tuning: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of a study, each file in one step, and return the path of the Markdown.

    Its figures are those of the runs as they stand in the JSON, so that `committed` gives the same report.

    Args:
        results: Runs that have ended. Only those of report seeds and of the chosen cells count.
        cells: Chosen cell of each arm; None or absent while it is not chosen.
        remarks: Sentences on the tuning.
        tuning: How the cells were chosen; see `Cells.record`.
    """
    from lightning_nlf.studies.figures import draw
    from lightning_nlf.studies.page import page
    from lightning_nlf.studies.summary import summarize

    chosen = [from_row(row(result, study)) for result in of_chosen_cells(study, results, cells)]
    summary = summarize(study, chosen)
    files = {suffix: file_of(study, suffix) for suffix in ("md", "json", "png")}
    files["md"].parent.mkdir(parents=True, exist_ok=True)
    record = dumps(content(study, summary, chosen, cells, remarks) | ({"tuning": tuning} if tuning else {}))
    in_one_step(files["json"], lambda part: part.write_text(record, encoding="utf-8"))
    in_one_step(files["png"], lambda part: draw(study, summary, part))
    text = page(study, summary, chosen, cells, remarks, files["png"].name)
    in_one_step(files["md"], lambda part: part.write_text(text, encoding="utf-8"))
    return files["md"]


def of_chosen_cells(
    study: Study, results: Sequence[Result], cells: Mapping[str, Mapping[str, Any] | None]
) -> list[Result]:
    """Runs of report seeds, by arm and seed, without those of a cell that is not the chosen one any more."""
    runs: dict[tuple[int, int], Result] = {}
    for result in results:
        run = result.run
        if run.stage == "report" and run.arm in study.arms and run.seed in study.report:
            cell = cells.get(run.arm)
            if cell is None or digest(cell) == digest(run.cell):
                runs[list(study.arms).index(run.arm), run.seed] = result
    return [runs[place] for place in sorted(runs)]


def committed(study: Study) -> list[Result]:
    """Report runs of the report that was written last, in its order, but for arms that have changed since."""
    record = read(study)
    unchanged = {name for name, arm in study.arms.items() if record.plans.get(name) == plan(arm, "report")}
    return [result for result in record.results if result.run.arm in unchanged]


def in_one_step(file: Path, save: Callable[[Path], object]) -> None:
    """Save to a file beside it, then rename, so that no reader sees half of a file."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        save(part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def content(
    study: Study,
    summary: Summary,
    results: Sequence[Result],
    cells: Mapping[str, Mapping[str, Any] | None],
    remarks: Sequence[str],
) -> dict[str, Any]:
    """The JSON of a report: its figures, and its runs with all of their validations."""
    from lightning_nlf.studies.reading import sentence

    return {
        "format": FORMAT,
        "study": study.name,
        "metric": study.metric,
        "higher": study.higher,
        "solved": asdict(study.solved) if study.solved else None,
        "cells": cells,
        "plans": {name: plan(arm, "report") for name, arm in study.arms.items()},
        "remarks": list(remarks),
        "reading": {c: {arm: sentence(study, summary, arm, c) for arm in study.arms} for c in study.counters},
        **rounded(asdict(summary)),
        "runs": [row(result, study) for result in results],
    }
