"""Report of `feedback.py`: a table and a picture for each study."""

from __future__ import annotations

import json
import math
import os
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.side_by_side import feedback_targets
from benchmarks.side_by_side.feedback_figures import (
    BUDGETS,
    KINDS,
    Rows,
    after,
    crossing,
    endings,
    gain,
    mean,
    over_shuffled,
    paired,
    ratio,
)
from lightning_nlf.studies.statistics import interval_text

RATIOS = {  # coverage from `coverage.py`
    "convergence": ", of ratios by resampling starts and the runs of each (simulated coverage .94)",
    "comparison": "",
}
REVISIONS = {
    "as it is": "",
    "revised after its critique": "revised_",
    "revised after another reply's": "revised_shuffled_",
    "revised after a critique that fits any": "revised_placebo_",
}


def report_text(study: str, rows: Rows, studies: dict[str, Any], frozen: dict[str, Any], folder: Path | None) -> str:
    """Report in Markdown; with `folder` it is also written to files, with the rows and the picture."""
    table, picture = {"convergence": (convergence, courses), "comparison": (comparison, ends)}[study]
    lines = table(rows, studies[study])
    if targets := getattr(feedback_targets, study)(rows, studies[study]):
        lines += ["", *feedback_targets.table(targets)]
    runs = {(row["start"], row["seed"]) for row in rows}
    budgets = ", ".join(f"{count:,} {BUDGETS[name]}" for name, count in studies[study]["budgets"].items())
    note = (
        f"Means over {len(runs)} runs from {len({start for start, _ in runs})} starts, paired with "
        f"{studies[study]['paired'][0]}; 95 % t intervals over starts{RATIOS[study]}. "
        f"For every arm that samples: {budgets}. {os.cpu_count()} cores; "
        f"`python benchmarks/feedback.py {study}`, one arm again: `--only ARM`."
    )
    text = "\n".join(lines) + f"\n\n{note}\n"
    if folder is not None:
        record = {"rows": rows, "cells": frozen, "endings": endings(rows)}
        (folder / f"feedback_{study}.json").write_text(json.dumps(record) + "\n")
        (folder / f"feedback_{study}.md").write_text(text)
        picture(rows, studies[study], folder / f"feedback_{study}.png")
    return text


def convergence(rows: Rows, study: dict[str, Any]) -> list[str]:
    base = study["paired"][0]
    lines = [
        "| arm | end, greedy | end, sampled | sampled, over "
        + f"{base} | tokens to greedy {study['thresholds']['greedy']:g} | of {base}'s | "
        + f"tokens to sampled {study['thresholds']['sampled']:g} | of {base}'s | calls to it |",
        "| --- " * 9 + "|",
    ]
    for arm, ends in endings(rows).items():
        pairs = paired(rows, arm, base)
        cells = [arm, interval_text(ends["greedy"], 3), interval_text(ends["sampled"], 3)]
        cells.append("" if arm == base else interval_text(gain(pairs, itemgetter("sampled")), 3))
        for kind in KINDS:
            threshold = study["thresholds"][kind]
            crossings = sorted(crossing(row, kind, threshold) for row in rows if row["arm"] == arm)
            reached = sum(map(math.isfinite, crossings))
            middle = crossings[(len(crossings) - 1) // 2]
            cells.append(f"{thousands(middle)}, {reached}/{len(crossings)}")
            until = partial(crossing, kind=kind, threshold=threshold)
            cells.append("" if arm == base else interval_text(ratio(pairs, until), 2))
        threshold, counter = study["thresholds"]["sampled"], "feedback_calls"
        sampling = [row for row in rows if row["arm"] == arm and counter in row["course"][0]]
        calls = sorted(crossing(row, "sampled", threshold, counter) for row in sampling)
        cells.append(thousands(calls[(len(calls) - 1) // 2]) if calls else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def comparison(rows: Rows, study: dict[str, Any]) -> list[str]:
    """Table of rewards at the end of each budget, best arm first, then the table of the start's revisions."""
    base, (first, *other_budgets) = study["paired"][0], study["budgets"].items()
    titles = ["arm", "greedy", "sampled", f"sampled, over {base}", "facts, sampled", "optimizer steps", "calls"]
    for name, count in other_budgets:
        titles += [f"sampled, after {count:,} {BUDGETS[name]}", f"over {base}"]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for arm, ends in sorted(endings(rows).items(), key=lambda item: -item[1]["sampled"][0]):
        mine, pairs = [row for row in rows if row["arm"] == arm], paired(rows, arm, base)
        cells = [arm, interval_text(ends["greedy"], 3), interval_text(ends["sampled"], 3)]
        cells.append("" if arm == base else interval_text(gain(pairs, itemgetter("sampled")), 3))
        cells.append(interval_text(mean(mine, itemgetter("facts_sampled")), 2))
        spent = [row.get("spent", {}).get(first[0]) or (row.get("course") or [{}])[-1] for row in mine]
        for counter in ("optimizer_steps", "feedback_calls"):
            counts = [counters[counter] for counters in spent if counter in counters]
            cells.append(thousands(float(np.mean(counts))) if counts else "")
        for name, _ in other_budgets:
            sampled = after(name, "sampled")
            trained = any(name in row.get("spent", {}) for row in mine)
            cells.append(interval_text(mean(mine, sampled), 3) if trained else "")
            cells.append(interval_text(gain(pairs, sampled), 3) if trained and arm != base else "")
        lines.append(f"| {' | '.join(cells)} |")
    starts = [row for row in rows if row["arm"] == "start"]
    return [*lines, "", *revisions(starts)] if starts else lines


def revisions(starts: Rows) -> list[str]:
    """Table of the start's rewards before and after one revision by itself: R(y₀) and R(y₁)."""
    lines = ["| the start, its reply | greedy | sampled |", "| --- " * 3 + "|"]
    for title, name in REVISIONS.items():
        figures = [interval_text(mean(starts, itemgetter(f"{name}{kind}")), 3) for kind in KINDS]
        lines.append(f"| {title} | {' | '.join(figures)} |")
    ahead = [interval_text(mean(starts, over_shuffled(kind)), 3) for kind in KINDS]
    return [*lines, f"| own critique, over another reply's | {' | '.join(ahead)} |"]


def thousands(x: float) -> str:
    return "∞" if math.isinf(x) else f"{x / 1000:.0f}k" if x >= 1000 else f"{x:.0f}"


def ends(rows: Rows, study: dict[str, Any], path: Path) -> None:
    """Plot of test rewards at the end of each budget, one line per arm, the best at the top."""
    arms = [arm for arm, _ in sorted(endings(rows).items(), key=lambda item: item[1]["sampled"][0])]
    figure, axes = plt.subplots(
        1, len(study["budgets"]), figsize=(15, 0.34 * len(arms) + 1.2), sharex=True, sharey=True
    )
    for panel, (name, count) in zip(axes, study["budgets"].items(), strict=True):
        for kind, colour, above in zip(KINDS, ("#b0b0b0", "#1f77b4"), (0.16, 0), strict=True):
            intervals = [mean([row for row in rows if row["arm"] == arm], after(name, kind)) for arm in arms]
            middle, low, high = np.array(intervals).T
            bars = np.stack([middle - low, high - middle])
            places = np.arange(len(arms)) + above
            panel.errorbar(middle, places, xerr=bars, fmt="o", color=colour, capsize=2, label=kind)
        panel.set_xlabel(f"reward by the rule after {count:,} {BUDGETS[name]}")
        panel.grid(alpha=0.3)
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def courses(rows: Rows, study: dict[str, Any], path: Path) -> None:
    """Plot of validation rewards against sampled tokens, averaged over the runs of each arm."""
    figure, axes = plt.subplots(1, 2, figsize=(14, 5.5), sharey=True)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    for panel, kind in zip(axes, KINDS, strict=True):
        for i, arm in enumerate(arms):
            arm_courses = [[point for point in row["course"] if kind in point] for row in rows if row["arm"] == arm]
            if not arm_courses[0] or not arm_courses[0][-1].get("env_steps"):
                continue
            count = min(map(len, arm_courses))
            x = np.mean([[point["env_steps"] for point in course[:count]] for course in arm_courses], 0)
            y = np.mean([[point[kind] for point in course[:count]] for course in arm_courses], 0)
            panel.plot(x / 1000, y, label=arm, color=plt.colormaps["tab20"](i % 20), linewidth=1.6)
        panel.axhline(study["thresholds"][kind], color="#888", linewidth=0.8, linestyle="--")
        panel.set_title(f"{kind}: what 192 validation prompts earn", fontsize=10)
        panel.set_xlabel("sampled tokens, thousands")
        panel.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0.6)
    axes[0].set_ylabel("reward by the rule, mean of the runs")
    axes[1].legend(fontsize=8, ncol=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
