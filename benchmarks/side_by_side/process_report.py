"""Report of `process.py`: a table of judges, a table of PPO with their rewards, and pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.side_by_side.rlhf_report import Rows
from lightning_nlf.studies.statistics import interval_text, mean_interval

Figures = dict[str, dict[str, Any]]
JUDGED = {
    "auc": "right above wrong (AUC)",
    "accuracy": "accuracy at ½",
    "best_of_4": "best of 4",
    "best_of_16": "best of 16",
}
EARNED = {"true_reward": 3, "kl": 1, "length": 1, "finished": 3}
JUDGES = {  # name of the yaml, if the judge is an unchanged one
    "process, min": "sums/step_reward",
    "process, product": "the same, the product of its steps",
    "process, last": "the same, its last step",
    "outcome": "sums/outcome_reward",
}
PAID = {
    "start": "sums/sft",
    "ppo_steps": "sums/ppo_steps",
    "ppo_product": "the same, paid the product at the end",
    "ppo_outcome": "sums/ppo_outcome",
}


def judges(rows: Rows) -> Figures:
    """Means and intervals by judge, including best of 16 minus that of the outcome model, paired by seed."""
    runs = [row["judges"] for row in rows if row["method"] == "judges"]
    figures: Figures = {}
    for name in runs[0] if runs else []:
        figures[name] = {key: mean_interval([row[name][key] for row in runs]) for key in JUDGED}
        figures[name]["ahead"] = mean_interval([row[name]["best_of_16"] - row["outcome"]["best_of_16"] for row in runs])
        figures[name]["seeds"] = len(runs)
    return figures


def policies(rows: Rows) -> Figures:
    """Means and intervals by reward, including the gain over the start of the same seed."""
    starts = {row["seed"]: row["true_reward"] for row in rows if row["method"] == "start"}
    figures: Figures = {}
    for name in PAID:
        runs = [row for row in rows if row["method"] == name]
        if not runs:
            continue
        figures[name] = {key: mean_interval([row[key] for row in runs]) for key in EARNED}
        gains = [row["true_reward"] - starts[row["seed"]] for row in runs if row["seed"] in starts]
        figures[name] |= {"gain": mean_interval(gains)} if gains else {}
        figures[name] |= {"tokens": mean_interval([row["sampled_tokens"] for row in runs]), "seeds": len(runs)}
    return figures


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def report_text(rows: Rows, frozen: dict[str, dict[str, Any]], folder: Path | None) -> str:
    """Report in Markdown; with `folder` it is also written to files, with the figures and the pictures."""
    by_judge, earned = judges(rows), policies(rows)
    seeds = max((figures["seeds"] for figures in [*by_judge.values(), *earned.values()]), default=0)
    judge_rows = [
        [
            JUDGES.get(name, name),
            *(interval_text(figures[key], 3) for key in JUDGED),
            "" if name == "outcome" else interval_text(figures["ahead"], 3),
        ]
        for name, figures in by_judge.items()
    ]
    paid_rows = []
    for name, figures in earned.items():
        gain = interval_text(figures["gain"], 3) if "gain" in figures and name != "start" else ""
        amounts = {key: interval_text(figures[key], digits) for key, digits in EARNED.items()}
        beta = frozen.get(name, {}).get("model.beta", "")
        tokens = f"{figures['tokens'][0]:,.0f}" if name != "start" else ""
        cells = [amounts["true_reward"], gain, amounts["kl"], amounts["length"], amounts["finished"], tokens, str(beta)]
        paid_rows.append([PAID[name], *cells])
    note = (
        f"Means and 95 % t intervals over {seeds} seeds (1000–{999 + seeds}), each with its own sums. Both "
        "models learned from the same 5,760 replies, the process model from a label a step, the outcome model from one "
        "a reply. Best of n: the share of right answers among those chosen, of 300 held-out sums; ahead: best of 16, "
        "minus that by the outcome model, by seed. PPO: true reward of 16 sampled replies to each held-out sum; "
        "every PPO took 192 optimizer steps on 4,608 sampled replies. "
        f"{os.cpu_count()} cores; `python benchmarks/process.py`, one row again: `--only ROW`."
    )
    parts = [
        table(["judge, a reply by its worst step", *JUDGED.values(), "ahead of outcome"], judge_rows)
        if judge_rows else "",
        table(
            ["PPO, and its start", "true reward", "gain over the start, paired", "KL from the start, nats",
             "tokens a reply", "finished", "tokens sampled in training", "chosen β"],
            paid_rows,
        ) if earned else "",
        note,
    ]  # fmt: skip
    text = "\n\n".join(part for part in parts if part) + "\n"
    if folder is not None:
        record = {"judges": by_judge, "policies": earned, "rows": rows, "cells": frozen}
        (folder / "process.json").write_text(json.dumps(record) + "\n")
        (folder / "process.md").write_text(text)
        picture(rows, by_judge, folder / "process.png")
    return text


COLOURS = {"ppo_steps": "#2563eb", "ppo_product": "#0d9488", "ppo_outcome": "#dc2626"}


def picture(rows: Rows, by_judge: Figures, path: Path) -> None:
    """Plots of best of n by judge, and of PPO's reward and true reward during training, one line per seed."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6))
    for name, figures in by_judge.items():
        means = [figures[f"best_of_{n}"] for n in (4, 16)]
        ends = [[x[0] - x[1] for x in means], [x[2] - x[0] for x in means]]
        axes[0].errorbar([4, 16], [x[0] for x in means], yerr=ends, marker="o", capsize=3, label=name)
    axes[0].set(xlabel="samples to choose from", ylabel="right answers", title="best of n, by judge", xscale="log")
    axes[0].set_xticks([4, 16], ["4", "16"])
    axes[0].minorticks_off()
    axes[0].legend(fontsize=8)
    panels = (("return", "what the reward model pays a reply"), ("true_reward", "right answers among what is sampled"))
    for panel, (key, title) in zip(axes[1:], panels, strict=True):
        for name, colour in COLOURS.items():
            courses = [[r[key] for r in row["course"]] for row in rows if row["method"] == name]
            for course in courses:
                panel.plot(course, color=colour, alpha=0.25, linewidth=1)
            if courses:
                panel.plot([sum(x) / len(x) for x in zip(*courses, strict=True)], color=colour, label=PAID[name])
        panel.set(title=title, xlabel="collections of 192 replies")
    axes[2].legend(fontsize=8)
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
