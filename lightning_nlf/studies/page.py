"""The Markdown page of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_nlf.studies.comparison import simultaneous
from lightning_nlf.studies.markdown import code, escaped
from lightning_nlf.studies.reading import counter_words, sentence
from lightning_nlf.studies.runs import Result
from lightning_nlf.studies.spec import Study
from lightning_nlf.studies.summary import Summary
from lightning_nlf.studies.tables import aggregates_table, arms_table, cells_table, settings_of


def page(
    study: Study,
    summary: Summary,
    results: Sequence[Result],
    cells: Mapping[str, Mapping[str, Any] | None],
    remarks: Sequence[str],
    picture: str,
) -> str:
    parts = [f"# Study: {escaped(study.name)}", _question(study)]
    for counter in study.counters:
        parts += _counter(study, summary, counter, cells)
    parts += [f"![Learning curves, performance profiles and comparisons](<{picture}>)", _method(study, summary)]
    if chosen := cells_table(study, cells):
        parts += ["## Chosen cells", chosen]
    if remarks:
        parts += ["## Remarks", _list(map(escaped, remarks))]
    if failed := [result for result in results if result.failure]:
        parts += [
            "## Failed runs",
            _list(f"{escaped(r.run.arm)}, seed {r.run.seed}: {escaped(r.failure)}" for r in failed),
        ]
    return "\n\n".join([*parts, "## How it was made", _list(_origin(study, results))]) + "\n"


def _list(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _question(study: Study) -> str:
    metric = code(study.metric)
    if study.solved is None:
        last = "last validation" if study.last == 1 else f"mean of the last {study.last} validations"
        return (
            f"Each run is judged by {metric} ({'higher' if study.higher else 'lower'} is better): its {last} "
            "within a budget. A failed run counts as the worst."
        )
    row = "a validation" if study.solved.in_a_row == 1 else f"the first of {study.solved.in_a_row} validations in a row"
    return (
        f"A run is solved at {row} with {metric} {'≥' if study.higher else '≤'} {study.solved.threshold:g}. A run "
        "that is not solved within its budget, or that failed, counts as infinitely slow."
    )


def _counter(study: Study, summary: Summary, counter: str, cells: Mapping[str, Any]) -> list[str]:
    """Sentences and tables at one counter."""
    limits = {name: x.limit for name, x in summary.arms[counter].items()}
    title = counter_words(counter)
    if spent := sorted({limit for limit in limits.values() if limit and not study.solved}):
        title = f"after {' or '.join(f'{limit:,.0f}' for limit in spent)} {title}"
    parts = [f"## {escaped(title[0].upper() + title[1:])}"]
    parts.append(_list(escaped(sentence(study, summary, arm, counter)) for arm in study.arms))
    for setting in settings_of(study, list(limits)):
        if setting:
            parts.append(f"**Setting: {escaped(setting)}**")
        parts.append(arms_table(study, summary, counter, setting, cells))
    if aggregates := aggregates_table(study, summary, counter):
        parts += ["**Over all settings**", aggregates]
    return parts


def _method(study: Study, summary: Summary) -> str:
    """How to read the tables."""
    starts = len(set(map(study.starts.__getitem__, study.report)))
    clustered = starts < len(study.report)
    resampled = f"{starts} starts, and the seeds within each" if clustered else "seeds, both runs of a pair together"
    bootstrap = f"percentile bootstrap over {resampled}, expanded for few seeds (arXiv:1411.5279)"
    effect = (
        "A ratio is the baseline's median over the arm's, above 1 if the arm is better. A median that was not reached "
        "counts as its budget or as infinite, whichever makes the weaker claim."
        if study.solved
        else "A difference is the median over pairs of arm − baseline."
    )
    exact = "exact, from order statistics of the pairs"
    if summary.planned == 1:
        together = "the bounds of the only comparison"
    else:
        together = (
            f"bounds of level {100 * simultaneous(summary.planned):.4g} %, which hold for all {summary.planned} "
            "comparisons of the report together with 95 % (Bonferroni)"
        )
    text = (
        f"Runs with the same seed are pairs. {effect} Its interval: "
        f"{bootstrap if study.solved or clustered else exact}. "
        f"**All together**: {together}; the sentences use these. "
        "Bounds are rounded to the weaker claim. P(better): share of pairs in which the arm is better, ties half, with "
        "Clopper and Pearson's interval. Curves: median and quartiles of the runs. Further columns: medians of what a "
        "run had spent when it was judged."
    )
    if summary.aggregates:
        text += (
            " Over all settings: the mean of the middle half of all runs, and the chance that a run of the arm is "
            "better than one of the baseline (arXiv:2108.13264), bootstrapped within each setting."
        )
    return text


def _origin(study: Study, results: Sequence[Result]) -> list[str]:
    """Command, seeds, machines and commits."""
    hours = sum(result.seconds for result in results) / 3600
    lines = [
        f"{code(f'python -m lightning_nlf study {relative_path(study.file)}')}; one arm again: `--only ARM`",
        f"Tuning seeds {seed_text(study.tune) or 'none'}; report seeds {seed_text(study.report)}",
        f"{len(results)} of {len(study.arms) * len(study.report)} report runs, {hours:.2f} hours of training in all",
    ]
    lines += [_sources("Machine", [(result.machine, result.run.arm) for result in results])]
    lines += [_sources("Commit", [(result.commit, result.run.arm) for result in results])]
    return [line for line in lines if line]


def _sources(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Each machine or commit once, with its arms if there are several; empty if none is known."""
    arms: dict[str, dict[str, None]] = {}
    for name, arm in sorted(rows, key=lambda row: row[0]):
        if name:
            arms.setdefault(name, {})[escaped(arm)] = None
    if not arms:
        return ""
    texts = [escaped(name) + (f" ({', '.join(arms[name])})" if len(arms) > 1 else "") for name in arms]
    changed = " (+: with changes that were not committed)" if any(name.endswith("+") for name in arms) else ""
    return f"{title}{'s' * (len(arms) > 1)} of the runs: {'; '.join(texts)}{changed}"


def relative_path(file: Path) -> str:
    """Path relative to the current folder, so that no report names a folder of its machine."""
    path = file.absolute()
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else file.name


def seed_text(seeds: Sequence[int]) -> str:
    """`0–9, 12`"""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in runs)
