"""Report of `rlhf.py`: a table, a plot of reward against KL, and a plot of overoptimization."""

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

from benchmarks.study.learner import stands
from lightning_nlf.studies.statistics import interval_text, mean_interval

Rows = list[dict[str, Any]]
JUDGED_BY = ("accuracy", "calibration_error")  # a reward model


def summary(rows: Rows) -> dict[str, dict[str, Any]]:
    """Means and intervals by method: true reward, gain over the start of the same seed, KL, length."""
    starts = {row["seed"]: row for row in rows if row["method"] == "start"}
    figures: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        runs = [row for row in rows if row["method"] == name]
        figures[name] = {key: mean_interval([row[key] for row in runs]) for key in ("true_reward", "kl", "length")}
        figures[name] |= {
            key: np.mean([row.get(key, 0) for row in runs]) for key in ("optimizer_steps", "sampled_tokens")
        }
        figures[name]["gain"] = mean_interval([row["true_reward"] - starts[row["seed"]]["true_reward"] for row in runs])
        figures[name]["seeds"] = len(runs)
    return figures


def report_text(rows: Rows, study: dict[str, Any], frozen: dict[str, Any], folder: Path | None) -> str:
    """Report in Markdown; with `folder` it is also written to files, with the figures and the pictures."""
    figures, methods = summary(rows), study["methods"]
    lines = [
        "| method | true reward | gain over its start, paired | KL from the start, nats | tokens a reply | steps "
        "| tokens sampled | chosen |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, method in sorted(figures.items(), key=lambda item: -item[1]["true_reward"][0]):
        cell = ", ".join(map(knob_text, frozen.get(name, {}).items()))
        gain = "" if name == "start" else interval_text(method["gain"], 3)
        title = title_of(name, methods[name], frozen.get(name, {}))
        title += "" if method["seeds"] == figures["start"]["seeds"] else f", {method['seeds']} seeds"
        columns = [
            title,
            interval_text(method["true_reward"], 3),
            gain,
            interval_text(method["kl"], 1),
            interval_text(method["length"], 1),
        ]
        columns += (
            ["", ""] if name == "start" else [f"{method['optimizer_steps']:.0f}", f"{method['sampled_tokens']:,.0f}"]
        )
        lines.append(f"| {' | '.join([*columns, cell])} |")
    starts = [row for row in rows if row["method"] == "start"]
    spread = mean_interval([row["reward_std"] for row in starts])
    right, off = (mean_interval([row["reward_model"][f"val/{key}"] for row in starts]) for key in JUDGED_BY)
    seeds, budget = figures["start"]["seeds"], study["budget"]
    note = (
        f"True reward of four sampled replies to each held-out prompt, mean and 95 % t interval over {seeds} "
        f"seeds (1000–{999 + seeds}); each method took about {budget['optimizer_steps']} optimizer steps and at most "
        f"{budget['replies']:,} replies, its own or those of the file, and replies that were cut off and played again; "
        "second_ppo goes on from ppo with as many more. "
        f"One standard deviation of a reply's reward at the start is {interval_text(spread, 3)}. "
        f"The reward model orders {interval_text(right, 3)} of held-out pairs as the rule does, and its calibration "
        f"error is {interval_text(off, 3)}. "
        f"{os.cpu_count()} cores; `python benchmarks/rlhf.py`, one method again: `--only METHOD`."
    )
    text = "\n".join(lines) + f"\n\n{note}\n"
    if folder is not None:
        record = {"summary": figures, "start_std": spread, "rows": rows, "cells": frozen}
        (folder / "rlhf.json").write_text(json.dumps(record) + "\n")
        (folder / "rlhf.md").write_text(text)
        frontier(figures, folder / "rlhf.png")
        overoptimization(rows, folder / "rlhf_overoptimization.png")
    return text


def title_of(name: str, method: dict[str, Any], cell: dict[str, Any]) -> str:
    """Path of the yaml if the method equals it without changes, else its name."""
    if name == "start":
        return "reviews/sft"
    if method.get("beyond_budget"):
        return f"{name} (beyond the budget)"
    return method["yaml"] if stands(method["yaml"], method.get("changes", {}) | cell) else name


def knob_text(knob: tuple[str, float | bool]) -> str:
    name, value = knob[0].rsplit(".", 1)[-1], knob[1]
    return f"{name} {str(value).lower()}" if isinstance(value, bool) else f"{name} {value:g}"


def frontier(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot of true reward against KL, one point per method."""
    figure, axes = plt.subplots(figsize=(9, 6))
    for i, method in enumerate(figures.values()):
        (x, *x_ends), (y, *y_ends) = method["kl"], method["true_reward"]
        colour = plt.colormaps["tab20"](i % 20)
        bars = {"xerr": np.abs([[e - x] for e in x_ends]), "yerr": np.abs([[e - y] for e in y_ends])}
        axes.errorbar(x, y, fmt="o", color=colour, capsize=2, **bars)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("KL from the start, nats a reply (95 % interval over seeds)")
    axes.set_ylabel("true reward on held-out prompts")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    name_points(axes, {name: (method["kl"][0], method["true_reward"][0]) for name, method in figures.items()})
    figure.savefig(path, dpi=110)
    plt.close(figure)


def name_points(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Place names near their points without overlap, with a line to points that are further away."""
    renderer = axes.figure.canvas.get_renderer()
    places = axes.transData.transform(list(points.values()))
    occupied = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    for i, (name, point) in enumerate(points.items()):
        colour = 0.65 * np.array(
            plt.colormaps["tab20"](i % 20)[:3]
        )  # the point's colour, darkened to be legible on white
        for far, angle in itertools.product((9, 20, 32, 45, 60), np.deg2rad(range(20, 380, 30))):
            offset = (far * np.cos(angle), far * np.sin(angle))
            side = "left" if offset[0] > 0 else "right"
            line = {"arrowstyle": "-", "linewidth": 0.8, "color": colour} if far > 9 else None
            how: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "ha": side, "va": "center"}
            text = axes.annotate(name, point, xytext=offset, arrowprops=line, color=colour, **how)
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # without the line
            inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
            if inside and not any(box.overlaps(box_before) for box_before in occupied):
                occupied.append(box)
                break
            text.remove()


def overoptimization(rows: Rows, path: Path) -> None:
    """Plots of PPO with and without a KL penalty: both rewards against KL, and the true reward against length."""
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
