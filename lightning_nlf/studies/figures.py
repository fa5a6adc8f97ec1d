"""Picture of a report: learning curves, performance profiles and comparisons, a row per counter and setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from lightning_nlf.studies.comparison import Comparison
from lightning_nlf.studies.reading import counter_words
from lightning_nlf.studies.spec import Study
from lightning_nlf.studies.summary import ArmFigures, Summary, baseline_of, method_of
from lightning_nlf.studies.tables import settings_of
from lightning_nlf.terminal import printable

# Okabe and Ito's colours, which people with any colour vision can tell apart; then again with other lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
ELSEWHERE = {"color": "#777777", "linestyle": (0, (1, 1))}  # a baseline that stands in another setting
LONGEST = 28  # characters of a name
Style = Mapping[str, Any]


def draw(study: Study, summary: Summary, file: Path) -> None:
    """Save the picture as PNG."""
    panels = [
        (counter, setting) for counter, arms in summary.arms.items() for setting in settings_of(study, list(arms))
    ]
    styles = styles_of(study)
    rows = max(len(panels), 1)
    largest = max((len(arms_of(study, summary.arms[c], s)) for c, s in panels), default=1)
    legend = legend_of(study, styles)
    below = 0.25 + 0.28 * math.ceil(len(legend) / 5)  # inches
    figure = Figure(figsize=(16, rows * max(4.2, 0.32 * largest + 1.6) + below), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, squeeze=False)
    for (counter, setting), (left, middle, right) in zip(panels, axes, strict=False):
        arms = arms_of(study, summary.arms[counter], setting)
        local = {name: styles[name] if in_setting(study, name, setting) else ELSEWHERE for name in arms}
        curves(study, left, {name: summary.curves[counter][name] for name in arms}, counter, local)
        profile(study, middle, arms, counter, local)
        compared = [c for name in arms if (c := summary.comparison(name, counter)) and in_setting(study, name, setting)]
        intervals(study, right, compared, counter, styles)
        if setting:
            left.set_title(label(setting), loc="left", fontweight="bold")
    handles = [Line2D([], [], linewidth=2.5, **style) for style in legend.values()]
    figure.legend(handles, list(legend), loc="lower center", ncols=5, fontsize=11, frameon=False, handlelength=3)
    figure.tight_layout(rect=(0, below / figure.get_figheight(), 1, 1))
    figure.savefig(file, format="png")


def legend_of(study: Study, styles: Mapping[str, Style]) -> dict[str, Style]:
    """Style of each method, and of baselines from another setting."""
    legend = {label(method_of(study, name)): style for name, style in styles.items()}
    for name, arm in study.arms.items():
        base = baseline_of(study, name)
        if base and study.arms[base].setting != arm.setting:
            legend[label(base)] = ELSEWHERE
    return legend


def styles_of(study: Study) -> dict[str, Style]:
    """Colour and line of each arm, the same for a method in all settings."""
    methods = list(dict.fromkeys(method_of(study, name) for name in study.arms))
    places = {name: methods.index(method_of(study, name)) for name in study.arms}
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]}
        for name, i in places.items()
    }


def arms_of(study: Study, arms: Mapping[str, ArmFigures], setting: str) -> dict[str, ArmFigures]:
    """Arms of a setting, and their baselines, which may stand in another one."""
    names = [name for name in arms if in_setting(study, name, setting)]
    bases = [base for name in names if (base := baseline_of(study, name)) in arms and base not in names]
    return {name: arms[name] for name in dict.fromkeys([*bases, *names])}


def in_setting(study: Study, name: str, setting: str) -> bool:
    return study.arms[name].setting == setting


def label(text: str) -> str:
    """Foreign text that matplotlib shows as it is: no maths, and no leading underscore, which hides a legend."""
    line = " ".join(printable(text).split())
    line = (line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…").replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def curves(
    study: Study, axes: Axes, by_arm: Mapping[str, Mapping[str, list[float]]], counter: str, styles: Mapping[str, Style]
) -> None:
    """Median and quartile band of the metric against a counter."""
    low, high = _range([x for curve in by_arm.values() for key in ("low", "median", "high") for x in curve[key]])
    alpha = 0.15 if len(by_arm) <= len(COLOURS) else 0.06
    for name, curve in by_arm.items():
        middle, bottom, top = (np.clip(curve[key], low, high) for key in ("median", "low", "high"))
        axes.plot(curve["at"], middle, linewidth=2, **styles[name])
        axes.fill_between(curve["at"], bottom, top, color=styles[name]["color"], alpha=alpha, linewidth=0)
    if study.solved:
        axes.axhline(study.solved.threshold, color="#777777", linewidth=1, linestyle=(0, (2, 3)))
        _log(axes)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylim(low, high)
    _name(axes, counter_words(counter), f"{label(study.metric)}: median, quartiles")


def profile(
    study: Study, axes: Axes, arms: Mapping[str, ArmFigures], counter: str, styles: Mapping[str, Style]
) -> None:
    """Share of runs that are solved within so many steps, or that are at least as good as a value."""
    values = {name: np.sort([x for x in arm.figures.values() if math.isfinite(x)]) for name, arm in arms.items()}
    log = study.solved is not None
    low, high = _range([float(x) for finite in values.values() for x in finite if x > 0 or not log], log)
    for name, finite in values.items():
        runs = len(arms[name].figures)
        end = max(arms[name].limit, low) if log else high
        if log or not study.higher:
            counts, drawstyle = [*range(len(finite) + 1), len(finite)], "steps-post"
        else:
            counts, drawstyle = [len(finite), *range(len(finite), -1, -1)], "steps-pre"
        shares = np.array(counts) / runs
        axes.plot([low, *finite, end], shares, drawstyle=drawstyle, linewidth=2, **styles[name])
    axes.set_ylim(-0.03, 1.03)
    if log:
        _log(axes)
        _name(axes, counter_words(counter), "share of runs that are solved")
    else:
        _name(axes, f"{label(study.metric)}: x", f"share of runs with {'at least' if study.higher else 'at most'} x")


def intervals(
    study: Study, axes: Axes, comparisons: Sequence[Comparison], counter: str, styles: Mapping[str, Style]
) -> None:
    """Effect of each arm: the 95 % interval as a thick line, the bounds that hold together as a thin one."""
    neutral = 1.0 if study.solved else 0.0
    ends = [
        x for c in comparisons for x in (*c.effect, *c.together) if math.isfinite(x) and (x > 0 or not study.solved)
    ]
    low, high = _range([*ends, neutral], log=study.solved is not None)
    for i, comparison in enumerate(comparisons):
        colour = styles[comparison.arm]["color"]
        for bounds, width in ((comparison.together[1:], 1.5), (comparison.effect[1:], 5)):
            axes.plot(np.clip(bounds, low, high), [i, i], color=colour, linewidth=width, solid_capstyle="butt")
        for bound, end, marker in ((comparison.together[1], low, "<"), (comparison.together[2], high, ">")):
            if not low <= bound <= high:  # it goes on beyond the picture
                axes.plot(end, i, marker=marker, color=colour, markersize=8, clip_on=False)
        if math.isfinite(comparison.effect[0]):
            axes.plot(np.clip(comparison.effect[0], low, high), i, "o", color=colour, markersize=8, mec="white")
    axes.axvline(neutral, color="#777777", linewidth=1)
    axes.set_yticks(range(len(comparisons)), [label(method_of(study, c.arm)) for c in comparisons], fontsize=11)
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.set_xlim(low, high)
    if study.solved:
        _log(axes)
    bases = sorted({comparison.baseline for comparison in comparisons})
    versus = label(bases[0]) if len(bases) == 1 else "the baseline"
    title = f"times fewer {counter_words(counter)} than {versus}" if study.solved else f"difference to {versus}"
    _name(axes, title, "")


def _log(axes: Axes) -> None:
    """Logarithmic x axis with plain numbers, a few in each decade if there are few decades."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.7 else (1, 3) if decades < 3 else (1,)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _range(values: Sequence[float], log: bool = False) -> tuple[float, float]:
    """Range of the finite values with a margin."""
    finite = [math.log(x) if log else x for x in values if math.isfinite(x)] or [0.0]
    margin = 0.06 * (max(finite) - min(finite)) or 0.5
    low, high = min(finite) - margin, max(finite) + margin
    return (math.exp(low), math.exp(high)) if log else (low, high)


def _name(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=12)
    axes.set_ylabel(y, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
