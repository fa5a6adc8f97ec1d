"""Report of `speedup.py`: JSON, tables in Markdown, and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.study.convergence import MODES
from benchmarks.study.learner import stands
from lightning_nlf.studies.statistics import (
    bootstrap_values,
    faster,
    interval,
    lower_median,
    rounded_down,
    rounded_up,
    speed_up,
)

Rows = dict[str, list[dict[str, Any]]]
BASELINE = "reinforce/all"
GRID = np.geomspace(100, 200_000, 60)  # environment steps at which curves are drawn
SETTINGS = {
    "all": "an expert who may label everything",
    "fifty": "50 labels in all",
    "weak": "a weak expert (195 of 1000)",
}
NAMES = {"sust": "mode of the policy", "sto": "sampled policy"}


def summary(
    rows: Rows, baseline: list[dict[str, Any]], budgets: Mapping[str, float], comparisons: int
) -> dict[str, dict[str, Any]]:
    """Figures of the tables, by arm and measure.

    A run that spent its budget is only known to be slower than that, so `faster` compares within the arm's budget.

    Args:
        baseline: runs of tuned REINFORCE.
        budgets: environment steps per run, by arm.
        comparisons: number of intervals that hold together; each has the level 1 − .05 / comparisons.
    """
    figures: dict[str, dict[str, Any]] = {}
    for arm, runs in rows.items():
        figures[arm] = {}
        for mode in MODES:
            steps, slow = ([run[mode]["steps"] for run in arm_runs] for arm_runs in (runs, baseline))
            probability, p = faster(within(slow, budgets[arm]), steps)
            low, middle, high = np.quantile(steps, [0.25, 0.5, 0.75], method="lower")
            figures[arm][mode] = {
                "median": middle,
                "interval": interval(bootstrap_values(lower_median, steps)),
                "quartiles": [low, high],
                "failures": sum(map(math.isinf, steps)),
                "seeds": len(steps),
                "budget": budgets[arm],
                "ratio": speed_up(slow, steps, budget=budgets[arm]),
                "corrected": speed_up(slow, steps, 1 - 0.05 / comparisons, budgets[arm]),
                "faster": probability,
                "p_corrected": min(p * comparisons, 1.0),
                "labels": float(np.quantile([run[mode]["labels"] for run in runs], 0.5, method="lower")),
            }
    return figures


def within(steps: Sequence[float], budget: float) -> list[float]:
    """Steps, with values above the budget set to infinity."""
    return [x if x <= budget else math.inf for x in steps]


def table(figures: dict[str, dict[str, Any]], setting: str) -> str:
    """Table of the arms of one setting."""
    lines = [
        "| arm | sust: median [quartiles] | failed | × REINFORCE (95 %) | **at least** | P(faster) "
        "| sto: median [quartiles] | failed | × REINFORCE (95 %) | **at least** | P(faster) | labels |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, by_mode in figures.items():
        if arm.split("/")[1] != setting:
            continue
        columns: list[str] = []
        for mode in MODES:
            x = by_mode[mode]
            ratio = "" if arm == BASELINE else _ratio(x)
            least = "" if arm == BASELINE else f"**{_bound(x['corrected'][1], rounded_down)}**"
            steps = _steps(x)
            chance = "" if arm == BASELINE else f"{x['faster']:.2f}"
            columns += [steps, f"{x['failures']}/{x['seeds']}", ratio, least, chance]
        lines.append(f"| {arm.split('/')[0]} | {' | '.join(columns)} | {by_mode['sust']['labels']:,.0f} |")
    return "\n".join(lines)


def _steps(figures: dict[str, Any]) -> str:
    """Median and quartiles; `>budget` for runs that spent their budget."""
    middle, *quartiles = (
        f">{figures['budget']:,}" if math.isinf(x) else f"{x:,.0f}" for x in (figures["median"], *figures["quartiles"])
    )
    return f"{middle} [{', '.join(quartiles)}]"


def _ratio(figures: dict[str, Any]) -> str:
    """Ratio with its interval; an upper bound if the arm's median run spent its budget."""
    middle, low, high = figures["ratio"]
    text = f"{middle:.2g}" if middle < 10 else f"{middle:.0f}"
    if math.isinf(figures["median"]):
        text = f"< {_bound(middle, rounded_up)}"
    return f"{text} ({_bound(low, rounded_down)}–{_bound(high, rounded_up)})"


def _bound(x: float, rounded: Callable[[float, int], str]) -> str:
    """Bound with two significant digits."""
    digits = 0 if math.isinf(x) or x >= 10 or x == 0 else 1 - math.floor(math.log10(x))
    return rounded(x, digits)


def write(rows: Rows, cells: dict[str, Any], arms: dict[str, Any], machine: str, folder: Path, whole: bool) -> None:
    """Print the tables; if all arms are there, also write the tables, the JSON and the pictures to `folder`.

    Args: rows: runs by arm. Runs from `committed` have no curves; their committed curves are used.
    """
    rows = {name: arm_runs for name, arm_runs in rows.items() if arm_runs}
    comparisons = 2 * (len(arms) - 1)
    budgets = {name: arm["budget"] for name, arm in arms.items()}
    figures = summary(rows, rows.get(BASELINE) or committed(folder)[BASELINE], budgets, comparisons)
    parts = []
    for setting, title in SETTINGS.items():
        if any(name.split("/")[1] == setting for name in rows):
            parts += [f"**Setting: {title}**", table(figures, setting)]
    text = "\n\n".join(parts)
    print(text)
    if not whole:
        return
    seeds = max(x["sust"]["seeds"] for x in figures.values())
    shorter = [f"{name} {arm['budget']:,}" for name, arm in arms.items() if name in rows and arm["budget"] < GRID[-1]]
    note = (
        f"Environment steps to 950, median [quartiles] of {seeds} fresh seeds (1000–{999 + seeds}) on {machine}; a "
        f"ratio is median(tuned REINFORCE) / median(arm) with its bootstrap interval (simulated coverage .96), **at "
        f"least** the lower bound that holds for all {comparisons} comparisons together; P(faster) is within the arm's "
        f"budget. Bounds are rounded to the weaker claim. A run fails after {GRID[-1]:,.0f} steps"
        f"{' (' + ', '.join(shorter) + ')' if shorter else ''}. `python benchmarks/speedup.py`; one row again: "
        f"`python benchmarks/speedup.py --only ARM/SETTING`, where the settings are {', '.join(SETTINGS)}."
    )
    sections = filter(None, [text, note, _yamls(figures, cells, arms), _chosen(cells, arms)])
    (folder / "speedup.md").write_text("\n\n".join(sections) + "\n")
    record = {
        "machine": machine,
        "summary": figures,
        "runs": {
            name: [{"seed": r["seed"], "sust": r["sust"], "sto": r["sto"], "decided": r["decided"]} for r in arm_runs]
            for name, arm_runs in rows.items()
        },
        "curves": _curves(rows, folder),
    }
    (folder / "speedup.json").write_text(json.dumps(plain(record), allow_nan=False) + "\n")
    _draw(rows, budgets, folder / "speedup_profile.png", _profile, "share of seeds that are solved")
    label = "return of one episode, mean of seeds, 95 % band"
    _draw(record["curves"], budgets, folder / "speedup_curves.png", _curve, label)


def plain(x: Any) -> Any:
    """Value for JSON, with null for infinity, which stands for a run that never solved the task."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def committed(folder: Path) -> Rows:
    """Committed runs by arm, without their curves."""
    path = folder / "speedup.json"
    runs = json.loads(path.read_text())["runs"] if path.is_file() else {}
    for arm_runs in runs.values():
        for run in arm_runs:
            for mode in MODES:
                if run[mode]["steps"] is None:
                    run[mode]["steps"] = math.inf
    return runs


def _curves(rows: Rows, folder: Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Mean return at `GRID` with its 95 % band, by arm and measure; committed curves for arms that were not run."""
    curves = {}
    for name, arm_runs in rows.items():
        if all("curves" in run for run in arm_runs):
            curves[name] = {mode: _band(curve(arm_runs, mode)) for mode in MODES}
        else:
            curves[name] = json.loads((folder / "speedup.json").read_text())["curves"][name]
    return curves


def _band(returns: np.ndarray) -> dict[str, list[float]]:
    """Mean and 95 % band of returns, (runs, 60)."""
    low, high = np.quantile(bootstrap_values(np.mean, returns.T, draws=1000), [0.025, 0.975], axis=-1)
    return {key: x.round(1).tolist() for key, x in (("mean", returns.mean(0)), ("low", low), ("high", high))}


def _yamls(figures: dict[str, dict[str, Any]], cells: dict[str, Any], arms: dict[str, Any]) -> str:
    """Table of the arms that equal a yaml without changes."""
    lines = ["| yaml | arm | sust | sto |", "| --- | --- | --- | --- |"]
    for name, by_mode in figures.items():
        if stands(arms[name]["yaml"], arms[name]["changes"] | cells[name]["cell"]):
            columns = [_steps(by_mode[mode]) for mode in MODES]
            lines.append(f"| {arms[name]['yaml']} | {name} | {' | '.join(columns)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _chosen(cells: dict[str, Any], arms: dict[str, Any]) -> str:
    rows = [
        f"| {name} | `{arm['yaml']}` | {_cell(cells[name]['cell'])} |" for name, arm in arms.items() if name in cells
    ]
    return "\n".join(["| arm | its yaml | chosen of 16 cells |", "| --- | --- | --- |", *rows])


def _cell(cell: dict[str, Any]) -> str:
    return ", ".join(f"`{key}={_value(value)}`" for key, value in cell.items()) or "as it is"


def _value(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        arguments = ", ".join(f"{k}={v}" for k, v in value.get("init_args", {}).items())
        return f"{value['class_path'].rsplit('.', 1)[1]}({arguments})"
    return str(value)


def curve(runs: list[dict[str, Any]], mode: str) -> np.ndarray:
    """Returns at `GRID`, (runs, 60): the last evaluated episode before each point."""
    returns = np.zeros((len(runs), len(GRID)))
    for row, run in zip(returns, runs, strict=True):
        points = np.array([[0.0, 0.0], *sorted(run["curves"][mode])])
        row[:] = points[np.searchsorted(points[:, 0], GRID, side="right") - 1, 1]
    return returns


def _profile(axes: Any, runs: list[dict[str, Any]], mode: str, budget: float, **style: Any) -> None:
    steps = np.sort([run[mode]["steps"] for run in runs])
    steps = steps[np.isfinite(steps)]
    shares = np.append(np.arange(len(steps) + 1), len(steps)) / len(runs)
    end = max([min(budget, GRID[-1]), *steps])
    axes.step(np.concatenate([GRID[:1], steps, [end]]), shares, where="post", **style)


def _curve(axes: Any, curves: dict[str, dict[str, list[float]]], mode: str, budget: float, **style: Any) -> None:
    band, run = curves[mode], budget >= GRID  # the curve ends at the budget
    axes.plot(GRID[run], np.array(band["mean"])[run], **style)
    if "low" in band:
        low, high = (np.array(band[name])[run] for name in ("low", "high"))
        axes.fill_between(GRID[run], low, high, color=style["color"], alpha=0.15, linewidth=0)


def _draw(
    rows: Mapping[str, Any], budgets: Mapping[str, float], path: Path, panel: Callable[..., None], y_label: str
) -> None:
    names = list(dict.fromkeys(name.split("/")[0] for name in rows))
    colours = dict(zip(names, plt.colormaps["tab20"](np.linspace(0, 1, 20)), strict=False))
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), sharex=True, sharey=True)
    for row, mode in enumerate(MODES):
        for column, (setting, title) in enumerate(SETTINGS.items()):
            axis = axes[row, column]
            for name, runs in rows.items():
                arm, where = name.split("/")
                if where == setting or name == BASELINE:
                    dashes = "--" if name == BASELINE else "-"
                    panel(axis, runs, mode, budgets[name], color=colours[arm], label=arm, linestyle=dashes)
            axis.set_xscale("log")
            axis.grid(alpha=0.3)
            axis.set_title(f"{title}\n{NAMES[mode]}" if row == 0 else NAMES[mode], fontsize=10)
    lines_by_label = {
        label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(lines_by_label.values(), lines_by_label.keys(), loc="lower center", ncol=7, fontsize=9, frameon=False)
    figure.supxlabel("environment steps, the expert's included", y=0.07)
    figure.supylabel(y_label)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
