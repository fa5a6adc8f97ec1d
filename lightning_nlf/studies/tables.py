"""Tables of a report: the arms at each counter, aggregates over settings, and the chosen cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning_nlf.studies.markdown import code, escaped, table
from lightning_nlf.studies.reading import counter_words, decimals
from lightning_nlf.studies.spec import Study
from lightning_nlf.studies.statistics import Interval, bounds, rounded_down, rounded_up
from lightning_nlf.studies.summary import ArmFigures, Summary, baseline_of, method_of

SPENT = ("env_steps", "tokens", "expert_steps", "labels", "feedback_calls", "optimizer_steps")
Cells = Mapping[str, Mapping[str, Any] | None]


def arms_table(study: Study, summary: Summary, counter: str, setting: str, cells: Cells) -> str:
    """Table of the arms of one setting at one counter."""
    arms = {name: x for name, x in summary.arms[counter].items() if study.arms[name].setting == setting}
    spent = [name for name in SPENT if any(x.spent.get(name) for x in arms.values())]
    also = {name: _digits(x.spent.get(name, 0.0) for x in arms.values()) for name in study.also}
    bases = {baseline_of(study, name) for name in arms} - {""}
    versus = escaped(bases.pop()) if len(bases) == 1 else "its baseline"
    value = escaped(counter_words(counter) if study.solved else study.metric)
    some_failed = any(x.failures for x in arms.values())
    titles = ["arm", "cell", "solved" if study.solved else "runs", "failed", f"{value}, median [quartiles]"]
    titles += [f"{'× fewer than' if study.solved else 'difference to'} {versus} (95 %)", "**all together**"]
    titles += [f"P(better than {versus}) (95 %)", "pairs", *(counter_words(name) for name in spent)]
    titles += map(escaped, also)
    digits = _digits(x.median for x in arms.values())
    rows = [
        [
            escaped(method_of(study, name)),
            short_cell(cells.get(name)),
            _runs(study, x),
            f"{x.failures}" if some_failed else "",
            _median(study, x, digits),
            *_comparison(study, summary, name, counter),
            *(f"{x.spent[name]:,.0f}" if name in x.spent else "" for name in spent),
            *(f"{x.spent[name]:,.{places}f}" if name in x.spent else "" for name, places in also.items()),
        ]
        for name, x in arms.items()
    ]
    return table(titles, rows)


def _runs(study: Study, x: ArmFigures) -> str:
    """Number of runs, `9/10` of solved ones."""
    runs = len(x.figures)
    return f"{runs - x.unsolved}/{runs}" if study.solved and not math.isnan(x.median) else f"{runs}"


def _digits(values: Iterable[float]) -> int:
    """Decimal places of a column: three significant digits of the largest value."""
    return decimals(*filter(math.isfinite, values), significant=3)


def _median(study: Study, x: ArmFigures, digits: int) -> str:
    """Median and quartiles; `> budget` for runs that were not solved, `failed` for those without a metric."""
    if math.isnan(x.median):
        return "not counted"

    def text(value: float) -> str:
        if math.isinf(value):
            return f"> {x.limit:,.0f}" if study.solved else "failed"
        return f"{value:,.{0 if study.solved else digits}f}"

    return f"{text(x.median)} [{', '.join(map(text, x.quartiles))}]"


def _comparison(study: Study, summary: Summary, name: str, counter: str) -> list[str]:
    comparison = summary.comparison(name, counter)
    if comparison is None:
        return [""] * 4
    medians = (summary.arms[counter][arm].median for arm in (name, comparison.baseline))
    effect = _ratio(comparison.effect, *map(math.isinf, medians)) if study.solved else _difference(comparison.effect)
    together = bounded(comparison.together) if study.solved else _difference_bounds(comparison.together)
    estimate, low, high = comparison.better
    pairs = "" if comparison.pairs == len(summary.arms[counter][name].figures) else f"{comparison.pairs}"
    return [effect, f"**{together}**", f"{estimate:.2f} {bounds(low, high, 2)}", pairs]


def _ratio(effect: Interval, slow: bool, slow_baseline: bool) -> str:
    """Ratio with its bounds; the ratio is itself a bound if the median run of the arm or baseline was not solved."""
    estimate = effect[0]
    if math.isnan(estimate) or math.isinf(estimate):
        return f"unknown {bounded(effect)}"
    sign, rounded = ("< ", rounded_up) if slow else ("> ", rounded_down) if slow_baseline else ("", _nearest)
    return f"{sign}{rounded(estimate, decimals(estimate))} {bounded(effect)}"


def _nearest(x: float, digits: int) -> str:
    return f"{x:,.{digits}f}"


def bounded(effect: Interval) -> str:
    """Bounds of a ratio with two significant digits each, rounded outwards."""
    return f"[{_bound(effect[1], rounded_down)}, {_bound(effect[2], rounded_up)}]"


def _bound(x: float, rounded: Callable[[float, int], str]) -> str:
    return rounded(x, decimals(x))


def _difference(effect: Interval) -> str:
    estimate = "unknown" if math.isnan(effect[0]) else _nearest(effect[0], decimals(*effect))
    return f"{estimate} {_difference_bounds(effect)}".replace("inf", "∞")


def _difference_bounds(effect: Interval) -> str:
    return bounds(*effect[1:], decimals(*effect))


def aggregates_table(study: Study, summary: Summary, counter: str) -> str:
    """Table of methods over settings; empty if no method stands in several."""
    rows = []
    for x in summary.aggregates:
        if x.counter == counter:
            chance = ""
            if x.improvement:
                chance = f"{x.improvement[0]:.2f} {bounds(*x.improvement[1:], 2)}"
            rows.append([escaped(x.method), escaped(", ".join(x.settings)), _difference(x.mean), chance])
    titles = ["arm", "settings", f"{escaped(study.metric)}, interquartile mean (95 %)", "P(improvement) (95 %)"]
    return table(titles, rows) if rows else ""


def cells_table(study: Study, cells: Cells) -> str:
    """Table of the chosen cells of the arms with a grid."""
    rows = [
        [escaped(name), code(" ".join(arm.words)), cell_text(cells.get(name))]
        for name, arm in study.arms.items()
        if arm.grid
    ]
    return table(["arm", "its yaml", "chosen on the tuning seeds"], rows) if rows else ""


def cell_text(cell: Mapping[str, Any] | None) -> str:
    return "not chosen yet" if cell is None else ", ".join(code(f"{key}={value}") for key, value in cell.items())


def short_cell(cell: Mapping[str, Any] | None) -> str:
    """A cell by the last parts of its keys: `lr 0.01, episodes 2`."""
    return ", ".join(f"{escaped(key.rsplit('.', 1)[-1])} {escaped(value)}" for key, value in (cell or {}).items())


def settings_of(study: Study, arms: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(study.arms[name].setting for name in arms))
