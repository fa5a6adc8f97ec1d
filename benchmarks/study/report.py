"""What `speedup.py` found, as json, a table that can be read, and three pictures."""

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

from benchmarks.intervals import bootstrap_values, faster, interval, lower_median, rounded_down, rounded_up, speed_up
from benchmarks.study.convergence import MODES
from benchmarks.study.learner import stands

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
    """The figures of the table: by arm and measure.

    A run that its budget ended is known to be slower than that, no more: `faster` compares within the arm's budget.

    Args:
        baseline: the runs of tuned REINFORCE.
        budgets: environment steps of a run, by arm.
        comparisons: intervals that hold together; each is at level 1 − .05 / comparisons.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm, runs in rows.items():
        found[arm] = {}
        for mode in MODES:
            steps, slow = ([run[mode]["steps"] for run in own] for own in (runs, baseline))
            probability, p = faster(within(slow, budgets[arm]), steps)
            low, middle, high = np.quantile(steps, [0.25, 0.5, 0.75], method="lower")
            found[arm][mode] = {
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
    return found


def within(steps: Sequence[float], budget: float) -> list[float]:
    """Steps above the budget are not known to it: infinite."""
    return [x if x <= budget else math.inf for x in steps]


def table(figures: dict[str, dict[str, Any]], setting: str) -> str:
    """The arms of one setting; the baselines without an expert stand in every table."""
    lines = [
        "| arm | sust: median [quartiles] | failed | × REINFORCE (95 %) | **at least** | P(faster) "
        "| sto: median [quartiles] | failed | × REINFORCE (95 %) | **at least** | P(faster) | labels |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, own in figures.items():
        if arm.split("/")[1] != setting:
            continue
        columns: list[str] = []
        for mode in MODES:
            x = own[mode]
            ratio = "" if arm == BASELINE else _ratio(x)
            least = "" if arm == BASELINE else f"**{_bound(x['corrected'][1], rounded_down)}**"
            steps = _steps(x)
            chance = "" if arm == BASELINE else f"{x['faster']:.2f}"
            columns += [steps, f"{x['failures']}/{x['seeds']}", ratio, least, chance]
        lines.append(f"| {arm.split('/')[0]} | {' | '.join(columns)} | {own['sust']['labels']:,.0f} |")
    return "\n".join(lines)


def _steps(figures: dict[str, Any]) -> str:
    """Median and quartiles; of runs that their budget ended, that they took more."""
    one, *quartiles = (
        f">{figures['budget']:,}" if math.isinf(x) else f"{x:,.0f}" for x in (figures["median"], *figures["quartiles"])
    )
    return f"{one} [{', '.join(quartiles)}]"


def _ratio(figures: dict[str, Any]) -> str:
    """With its interval; below the figure, or unknown, where the arm's budget ended its median run."""
    middle, low, high = figures["ratio"]
    text = f"{middle:.2g}" if middle < 10 else f"{middle:.0f}"
    if math.isinf(figures["median"]):
        text = f"< {_bound(middle, rounded_up)}"
    return f"{text} ({_bound(low, rounded_down)}–{_bound(high, rounded_up)})"


def _bound(x: float, rounded: Callable[[float, int], str]) -> str:
    """To two digits."""
    digits = 0 if math.isinf(x) or x >= 10 or x == 0 else 1 - math.floor(math.log10(x))
    return rounded(x, digits)


def write(rows: Rows, cells: dict[str, Any], arms: dict[str, Any], machine: str, folder: Path, whole: bool) -> None:
    """Prints the tables; with all arms also writes them, the json and the pictures to `folder`.

    Args: rows: runs by arm, those of `committed` among them, which bring no curves: theirs are committed too.
    """
    rows = {name: own for name, own in rows.items() if own}
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
    kept = {
        "machine": machine,
        "summary": figures,
        "runs": {
            name: [{"seed": r["seed"], "sust": r["sust"], "sto": r["sto"], "decided": r["decided"]} for r in own]
            for name, own in rows.items()
        },
        "curves": _curves(rows, folder),
    }
    (folder / "speedup.json").write_text(json.dumps(plain(kept), allow_nan=False) + "\n")
    _draw(rows, budgets, folder / "speedup_profile.png", _profile, "share of seeds that are solved")
    what = "return of one episode, mean of seeds, 95 % band"
    _draw(kept["curves"], budgets, folder / "speedup_curves.png", _curve, what)


def plain(x: Any) -> Any:
    """For json, which has no infinity: null is a run that never got there."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def committed(folder: Path) -> Rows:
    """The runs of the studies so far, by arm: without their curves."""
    path = folder / "speedup.json"
    runs = json.loads(path.read_text())["runs"] if path.is_file() else {}
    for own in runs.values():
        for run in own:
            for mode in MODES:
                if run[mode]["steps"] is None:
                    run[mode]["steps"] = math.inf
    return runs


def _curves(rows: Rows, folder: Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Mean at `GRID` and its 95 % band, by arm and measure; of arms that were not run now, as they are committed."""
    found = {}
    for name, own in rows.items():
        if all("curves" in run for run in own):
            found[name] = {mode: _band(curve(own, mode)) for mode in MODES}
        else:
            found[name] = json.loads((folder / "speedup.json").read_text())["curves"][name]
    return found


def _band(returns: np.ndarray) -> dict[str, list[float]]:
    """returns (runs, 60)"""
    low, high = np.quantile(bootstrap_values(np.mean, returns.T, draws=1000), [0.025, 0.975], axis=-1)
    return {key: x.round(1).tolist() for key, x in (("mean", returns.mean(0)), ("low", low), ("high", high))}


def _yamls(figures: dict[str, dict[str, Any]], cells: dict[str, Any], arms: dict[str, Any]) -> str:
    """The arms that are a yaml as it stands."""
    lines = ["| yaml | arm | sust | sto |", "| --- | --- | --- | --- |"]
    for name, own in figures.items():
        if stands(arms[name]["yaml"], arms[name]["changes"] | cells[name]["cell"]):
            columns = [_steps(own[mode]) for mode in MODES]
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
        own = ", ".join(f"{k}={v}" for k, v in value.get("init_args", {}).items())
        return f"{value['class_path'].rsplit('.', 1)[1]}({own})"
    return str(value)


def curve(runs: list[dict[str, Any]], mode: str) -> np.ndarray:
    """Returns at `GRID`, (runs, 60): the last episode that was evaluated before each point."""
    found = np.zeros((len(runs), len(GRID)))
    for own, run in zip(found, runs, strict=True):
        points = np.array([[0.0, 0.0], *sorted(run["curves"][mode])])
        own[:] = points[np.searchsorted(points[:, 0], GRID, side="right") - 1, 1]
    return found


def _profile(axes: Any, runs: list[dict[str, Any]], mode: str, budget: float, **style: Any) -> None:
    steps = np.sort([run[mode]["steps"] for run in runs])
    steps = steps[np.isfinite(steps)]
    shares = np.append(np.arange(len(steps) + 1), len(steps)) / len(runs)
    end = max([min(budget, GRID[-1]), *steps])
    axes.step(np.concatenate([GRID[:1], steps, [end]]), shares, where="post", **style)


def _curve(axes: Any, curves: dict[str, dict[str, list[float]]], mode: str, budget: float, **style: Any) -> None:
    own, run = curves[mode], budget >= GRID  # nothing is known of what would have come
    axes.plot(GRID[run], np.array(own["mean"])[run], **style)
    if "low" in own:
        low, high = (np.array(own[name])[run] for name in ("low", "high"))
        axes.fill_between(GRID[run], low, high, color=style["color"], alpha=0.15, linewidth=0)


def _draw(
    rows: Mapping[str, Any], budgets: Mapping[str, float], path: Path, panel: Callable[..., None], what: str
) -> None:
    names = list(dict.fromkeys(name.split("/")[0] for name in rows))
    colours = dict(zip(names, plt.colormaps["tab20"](np.linspace(0, 1, 20)), strict=False))
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), sharex=True, sharey=True)
    for row, mode in enumerate(MODES):
        for column, (setting, title) in enumerate(SETTINGS.items()):
            own = axes[row, column]
            for name, runs in rows.items():
                arm, where = name.split("/")
                if where == setting or name == BASELINE:
                    dashes = "--" if name == BASELINE else "-"
                    panel(own, runs, mode, budgets[name], color=colours[arm], label=arm, linestyle=dashes)
            own.set_xscale("log")
            own.grid(alpha=0.3)
            own.set_title(f"{title}\n{NAMES[mode]}" if row == 0 else NAMES[mode], fontsize=10)
    named = {label: line for own in axes.flat for line, label in zip(*own.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="lower center", ncol=7, fontsize=9, frameon=False)
    figure.supxlabel("environment steps, the expert's included", y=0.07)
    figure.supylabel(what)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
