"""What `rlhf.py` found: a table, reward against KL, and how far the reward model can be followed."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from benchmarks.intervals import mean_interval, shown
from benchmarks.study.learner import stands

Rows = list[dict[str, Any]]
JUDGED_BY = ("accuracy", "calibration_error")  # a reward model


def summary(rows: Rows) -> dict[str, dict[str, Any]]:
    """By method: mean and interval of true reward, gain over the start of the same seed, KL and length."""
    starts = {row["seed"]: row for row in rows if row["method"] == "start"}
    figures: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        figures[name] = {key: mean_interval([row[key] for row in own]) for key in ("true_reward", "kl", "length")}
        figures[name] |= {
            key: np.mean([row.get(key, 0) for row in own]) for key in ("optimizer_steps", "sampled_tokens")
        }
        figures[name]["gain"] = mean_interval([row["true_reward"] - starts[row["seed"]]["true_reward"] for row in own])
        figures[name]["seeds"] = len(own)
    return figures


def written(rows: Rows, study: dict[str, Any], frozen: dict[str, Any], folder: Path | None) -> str:
    """The table; with `folder` also in files, with the figures and the pictures."""
    figures, methods = summary(rows), study["methods"]
    lines = [
        "| method | true reward | gain over its start, paired | KL from the start, nats | tokens a reply | steps "
        "| tokens sampled | chosen |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, own in sorted(figures.items(), key=lambda item: -item[1]["true_reward"][0]):
        cell = ", ".join(map(told, frozen.get(name, {}).items()))
        gain = "" if name == "start" else shown(own["gain"], 3)
        title = title_of(name, methods[name], frozen.get(name, {}))
        title += "" if own["seeds"] == figures["start"]["seeds"] else f", {own['seeds']} seeds"
        columns = [title, shown(own["true_reward"], 3), gain, shown(own["kl"], 1), shown(own["length"], 1)]
        columns += ["", ""] if name == "start" else [f"{own['optimizer_steps']:.0f}", f"{own['sampled_tokens']:,.0f}"]
        lines.append(f"| {' | '.join([*columns, cell])} |")
    starts = [row for row in rows if row["method"] == "start"]
    spread = mean_interval([row["reward_std"] for row in starts])
    right, off = (mean_interval([row["reward_model"][f"val/{key}"] for row in starts]) for key in JUDGED_BY)
    seeds, budget = figures["start"]["seeds"], study["budget"]
    note = (
        f"True reward of four sampled replies to each held-out prompt, mean and 95 % t interval over {seeds} "
        f"seeds (1000–{999 + seeds}); each method took about {budget['optimizer_steps']} optimizer steps and at most "
        f"{budget['replies']:,} replies, its own or those of the file, and replies that were cut off and played again; "
        "second_ppo goes on from rlhf_ppo with as many more. "
        f"One standard deviation of a reply's reward at the start is {shown(spread, 3)}. The reward model orders "
        f"{shown(right, 3)} of held-out pairs as the rule does, and its calibration error is {shown(off, 3)}. "
        f"{os.cpu_count()} cores; `python benchmarks/rlhf.py`, one method again: `--only METHOD`."
    )
    text = "\n".join(lines) + f"\n\n{note}\n"
    if folder is not None:
        kept = {"summary": figures, "start_std": spread, "rows": rows, "cells": frozen}
        (folder / "rlhf.json").write_text(json.dumps(kept) + "\n")
        (folder / "rlhf.md").write_text(text)
        frontier(figures, folder / "rlhf.png")
        overoptimization(rows, folder / "rlhf_overoptimization.png")
    return text


def title_of(name: str, method: dict[str, Any], cell: dict[str, Any]) -> str:
    """The yaml, where the method is that as it stands."""
    if name == "start":
        return "rlhf/sft"
    if method.get("beyond_budget"):
        return f"{name} (beyond the budget)"
    return f"rlhf/{method['yaml']}" if stands(f"rlhf/{method['yaml']}", method.get("changes", {}) | cell) else name


def told(knob: tuple[str, float | bool]) -> str:
    name, value = knob[0].rsplit(".", 1)[-1], knob[1]
    return f"{name} {str(value).lower()}" if isinstance(value, bool) else f"{name} {value:g}"


def frontier(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """True reward against KL, a point a method."""
    figure, axes = plt.subplots(figsize=(9, 6))
    for i, own in enumerate(figures.values()):
        (x, *x_ends), (y, *y_ends) = own["kl"], own["true_reward"]
        colour = plt.colormaps["tab20"](i % 20)
        bars = {"xerr": np.abs([[e - x] for e in x_ends]), "yerr": np.abs([[e - y] for e in y_ends])}
        axes.errorbar(x, y, fmt="o", color=colour, capsize=2, **bars)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("KL from the start, nats a reply (95 % interval over seeds)")
    axes.set_ylabel("true reward on held-out prompts")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    name_points(axes, {name: (own["kl"][0], own["true_reward"][0]) for name, own in figures.items()})
    figure.savefig(path, dpi=110)
    plt.close(figure)


def name_points(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Names as near to their points as they stand free of other names and points, with a line where that is far."""
    renderer = axes.figure.canvas.get_renderer()
    places = axes.transData.transform(list(points.values()))
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    for i, (name, point) in enumerate(points.items()):
        colour = 0.65 * np.array(plt.colormaps["tab20"](i % 20)[:3])  # as the point, to be read on white
        for far, angle in itertools.product((9, 20, 32, 45, 60), np.deg2rad(range(20, 380, 30))):
            offset = (far * np.cos(angle), far * np.sin(angle))
            side = "left" if offset[0] > 0 else "right"
            line = {"arrowstyle": "-", "linewidth": 0.8, "color": colour} if far > 9 else None
            how: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "ha": side, "va": "center"}
            text = axes.annotate(name, point, xytext=offset, arrowprops=line, color=colour, **how)
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # without the line
            inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def overoptimization(rows: Rows, path: Path) -> None:
    """PPO against the reward model, on the leash and off it: both rewards as KL grows, the true one by length."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6))
    panels = (
        ("kl", "proxy", "the reward model's reward, as the KL grows"),
        ("kl", "true_reward", "the true reward, as the KL grows"),
        ("length", "true_reward", "the true reward by length of reply"),
    )
    for name, colour in (("ppo", "#2563eb"), ("ppo_unleashed", "#dc2626")):
        courses = [row["course"] for row in rows if row["method"] == name]
        for panel, (x, y, title) in zip(axes, panels, strict=True):
            for course in courses:
                panel.plot([r[x] for r in course], [r[y] for r in course], color=colour, alpha=0.25, linewidth=1)
            count = min((len(course) for course in courses), default=0)
            if count:
                mean = {key: np.mean([[r[key] for r in c[:count]] for c in courses], 0) for key in (x, y)}
                panel.plot(mean[x], mean[y], color=colour, linewidth=2.2, label=name.replace("_", ", "))
            panel.set_title(title, fontsize=10)
            panel.set_xlabel({"kl": "KL from the start, nats a reply", "length": "tokens a reply"}[x])
            panel.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
