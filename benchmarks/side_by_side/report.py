"""Report of `throughput.py`: tables, targets and a picture."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.side_by_side.pinned import Row
from lightning_nlf.studies.statistics import Interval, bounds, geometric_mean_interval, median, ratio_interval, speed_up

Found = dict[str, list[dict[str, Any]]]

PACKAGES = ("torch", "lightning", "mlflow", "mujoco", "gymnasium", "stable-baselines3", "envpool", "numpy")
TITLES = {
    "training": "Environment steps/s of training: collecting and updating together",
    "stepping": "Environment steps/s of stepping alone, with the linear law that holds the pole up",
    "solving": "Seconds to solve, on one core",
    "starting": "Seconds to start, on two cores",
    "step": "Microseconds an optimizer step, of REINFORCE on a fixed batch of 4 × 32 steps, on one core",
    "shares": "What the wall of our training is made of, % (timers included)",
}


@dataclass(frozen=True)
class Claim:
    """Geometric mean or ratio of two, whose bound is compared with `target` (None: no target)."""

    title: str
    over: str
    under: str = ""
    target: float | None = None
    at_most: bool = False  # at most `target`, else at least

    def bounds(self, values: dict[str, list[float]]) -> Interval:
        """Estimate with the 95 % t interval of its logarithm; rows that took turns are paired by repeat."""
        if not self.under:
            return geometric_mean_interval(values[self.over])
        over, under = values[self.over], values[self.under]
        if not all(map(math.isfinite, [*over, *under])):  # with an unsolved run only medians are defined
            return speed_up(over, under)
        return ratio_interval(over, under, paired=len(over) == len(under))

    def is_met(self, low: float, high: float) -> bool:
        assert self.target is not None
        return high <= self.target if self.at_most else low >= self.target


def claims() -> list[Claim]:
    ours, default, lean = "training/ours-reinforce@", "training/sb3-default@1", "training/sb3-lean@"
    solving = "solving/ours-reinforce@1"
    return [
        Claim("REINFORCE, one core, steps/s", f"{ours}1", target=60_000),
        Claim("REINFORCE, two cores, steps/s", f"{ours}2", target=100_000),
        Claim("REINFORCE ÷ stable-baselines3's default, one core", f"{ours}1", default, 35),
        Claim("REINFORCE ÷ the peer's fastest mode (lean), one core", f"{ours}1", f"{lean}1"),
        Claim("REINFORCE ÷ the peer's fastest mode (lean), two cores", f"{ours}2", f"{lean}2"),
        Claim("our PPO ÷ stable-baselines3's default, one core", "training/ours-ppo@1", default),
        Claim("our PPO with the default's sizes ÷ it, one core", "training/ours-same@1", default),
        Claim("REINFORCE: solved sooner than stable-baselines3's default, ×", "solving/sb3-default@1", solving, 20),
        Claim("the same with 8 episodes an update, ×", "solving/sb3-default@1", "solving/ours-eight@1"),
        Claim("REINFORCE: solved sooner than with rl-zoo's settings, ×", "solving/sb3-zoo@1", solving),
        Claim(
            "injection, with an expert: solved sooner than the default, ×",
            "solving/sb3-default@1",
            "solving/ours-injection@1",
        ),
        Claim("two processes that share nothing ÷ one", "stepping/processes@2", "stepping/processes@1"),
        Claim("Lightning with logging, µs a step", "step/logger@1", target=800, at_most=True),
        Claim("`--help`, seconds", "starting/help@2", target=5, at_most=True),
        Claim("main job to its first training step, seconds", "starting/first-step@2", target=12, at_most=True),
        Claim("main job to its end, seconds", "starting/main-job@2"),
    ]


def report_text(chosen: list[Row], calls_by_row: Found, repeats: int, load: float, folder: Path | None) -> str:
    """Report in Markdown; with `folder` it is also written to files, with the figures and the picture."""
    values = {key: [float(figures["value"]) for figures in calls] for key, calls in calls_by_row.items()}
    measured_claims = [c for c in claims() if c.over in values and (not c.under or c.under in values)]
    machine = f"{os.cpu_count()} cores of {processor()}, load {load:.1f} before"
    packages = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES if installed(name)}
    parts = [targets(measured_claims, values)] if measured_claims else []
    for section, title in TITLES.items():
        section_rows = [row for row in chosen if row.section == section]
        if section_rows:
            parts.append(f"**{title}**\n\n{TABLES.get(section, plain_table)(section_rows, calls_by_row)}")
    names = ", ".join(f"{name} {number}" for name, number in packages.items())
    parts.append(f"{repeats} repeats in turns on {machine}; {names}; `python benchmarks/throughput.py`.")
    text = "\n\n".join(parts) + "\n"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        ratios = [vars(c) | dict(zip(("value", "low", "high"), c.bounds(values), strict=True)) for c in measured_claims]
        everything = {"machine": machine, "packages": packages, "claims": ratios, "rows": calls_by_row}
        (folder / "throughput.json").write_text(json.dumps(everything, indent=1) + "\n")
        (folder / "throughput.md").write_text(text)
        chart(chosen, values, machine, folder / "throughput.png")
    return text


# ---- tables


def digits_of(x: float) -> int:
    return 0 if x >= 100 else 1 if x >= 10 else 2


def number_text(x: float) -> str:
    return "∞" if math.isinf(x) else f"{x:,.{digits_of(x)}f}"


def ranged(values: list[float]) -> str:
    """`median (minimum–maximum)`"""
    return f"{number_text(median(values))} ({number_text(min(values))}–{number_text(max(values))})"


def command(row: Row) -> str:
    return f"`--only {row.name}`"


def table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines])


def targets(measured_claims: list[Claim], values: dict[str, list[float]]) -> str:
    lines = []
    for claim in measured_claims:
        middle, low, high = claim.bounds(values)
        target, verdict = "", ""
        if claim.target is not None:
            target = f"{'≤' if claim.at_most else '≥'} {claim.target:,g}"
            verdict = "yes" if claim.is_met(low, high) else "no"
        lines.append([claim.title, number_text(middle), bounds(low, high, digits_of(middle)), target, verdict])
    return table(["what", "figure", "95 % interval", "target", "met by its bound"], lines)


def plain_table(rows: list[Row], figures: Found) -> str:
    """Table with a column for each number of cores."""
    cores = sorted({row.cores for row in rows})
    lines = []
    for row in {row.name: row for row in rows}.values():
        keys = [f"{row.name}@{n}" for n in cores]
        cells = [ranged([f["value"] for f in figures[key]]) if key in figures else "" for key in keys]
        lines.append([row.title, *cells, command(row)])
    names = ["median (least–most)"] if len(cores) == 1 else ["one core, median (least–most)", "two cores"]
    return table(["what", *names, "alone"], lines)


def solving_table(rows: list[Row], figures: Found) -> str:
    lines = []
    for row in rows:
        columns = [[f[key] for f in figures[row.key]] for key in ("value", "steps")]
        solved = sum(math.isfinite(x) for x in columns[0])
        cells = [ranged(x) for x in columns]
        lines.append([row.title, f"{solved}/{len(columns[0])}", *cells, command(row)])
    return table(["what", "solved", "seconds, median (least–most)", "environment steps", "alone"], lines)


def shares_table(rows: list[Row], figures: Found) -> str:
    parts = {row.key: figures[row.key][0]["shares"] for row in rows}
    labels = list(next(iter(parts.values())))
    lines = [[label, *(f"{100 * parts[row.key][label]:.1f}" for row in rows)] for label in labels]
    lines.append(["steps/s", *(number_text(figures[row.key][0]["value"]) for row in rows)])
    lines.append(["alone", *(command(row) for row in rows)])
    heads = [f"{row.title}, {row.cores} core{'s' * (row.cores > 1)}" for row in rows]
    return table(["part", *heads], lines)


TABLES: dict[str, Callable[[list[Row], Found], str]] = {"solving": solving_table, "shares": shares_table}


# ---- machine and picture


def processor() -> str:
    """Model name of the processor on Linux, else the architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {platform.machine()}" if models else platform.machine()


def installed(name: str) -> bool:
    try:
        return bool(version(name))
    except ImportError:  # PackageNotFoundError is one
        return False


def chart(chosen: list[Row], values: dict[str, list[float]], machine: str, path: Path) -> None:
    """Bar chart of training steps/s, ours and the peers', on one and two cores."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list({row.name: row for row in chosen if row.section == "training"}.values())
    rows.sort(key=lambda row: median(values[f"{row.name}@1"]))
    figure, axes = plt.subplots(figsize=(9, 0.75 * len(rows) + 1.2), layout="constrained")
    shades = {True: ("#9ec5e8", "#1f77b4"), False: ("#d0d0d0", "#7f7f7f")}
    for place, row in enumerate(rows):
        for cores, offset in ((1, 0.19), (2, -0.19)):
            sample = values[f"{row.name}@{cores}"]
            middle, ours = median(sample), "/ours" in row.name
            label = f"{'this library' if ours else 'peers'}, {('one core', 'two cores')[cores - 1]}"
            error = [[middle - min(sample)], [max(sample) - middle]]
            bar = {"color": shades[ours][cores - 1], "label": label, "xerr": error}
            axes.barh(place + offset, middle, 0.36, error_kw={"lw": 1, "ecolor": "#444444"}, **bar)
            axes.text(max(sample), place + offset, f"  {middle:,.0f}", va="center", fontsize=8)
    names = [fill(row.title.replace("`", "").replace("stable-baselines3", "SB3"), 30) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("environment steps/s, collecting and updating: median, least and most")
    once = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(once.values(), once.keys(), loc="lower right", frameon=False)
    axes.set_title(f"Training on InvertedPendulum, {machine.split(',')[0]}", fontsize=10)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
