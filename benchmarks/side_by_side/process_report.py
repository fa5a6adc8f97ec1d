"""What `process.py` found: a table of judges, a table of PPO paid by them, and both as pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.intervals import mean_interval, shown
from benchmarks.side_by_side.rlhf_report import Rows

Figures = dict[str, dict[str, Any]]
JUDGED = {
    "auc": "right above wrong (AUC)",
    "accuracy": "accuracy at ½",
    "best_of_4": "best of 4",
    "best_of_16": "best of 16",
}
EARNED = {"true_reward": 3, "kl": 1, "length": 1, "finished": 3}
JUDGES = {  # a yaml, where it is that as it stands
    "process, min": "process/step_reward",
    "process, product": "the same, the product of its steps",
    "process, last": "the same, its last step",
    "outcome": "process/outcome_reward",
}
PAID = {
    "start": "process/sums_sft",
    "ppo_steps": "process/ppo_steps",
    "ppo_product": "the same, paid the product at the end",
    "ppo_outcome": "process/ppo_outcome",
}


def judges(rows: Rows) -> Figures:
    """By judge: mean and interval of each figure, and of best of 16 minus that of the outcome model, by seed."""
    own = [row["judges"] for row in rows if row["method"] == "judges"]
    figures: Figures = {}
    for name in own[0] if own else []:
        figures[name] = {key: mean_interval([row[name][key] for row in own]) for key in JUDGED}
        figures[name]["ahead"] = mean_interval([row[name]["best_of_16"] - row["outcome"]["best_of_16"] for row in own])
        figures[name]["seeds"] = len(own)
    return figures


def policies(rows: Rows) -> Figures:
    """By who paid: mean and interval of each figure, and of the gain over the start of the same seed."""
    starts = {row["seed"]: row["true_reward"] for row in rows if row["method"] == "start"}
    figures: Figures = {}
    for name in PAID:
        own = [row for row in rows if row["method"] == name]
        if not own:
            continue
        figures[name] = {key: mean_interval([row[key] for row in own]) for key in EARNED}
        gains = [row["true_reward"] - starts[row["seed"]] for row in own if row["seed"] in starts]
        figures[name] |= {"gain": mean_interval(gains)} if gains else {}
        figures[name] |= {"tokens": mean_interval([row["sampled_tokens"] for row in own]), "seeds": len(own)}
    return figures


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def written(rows: Rows, frozen: dict[str, dict[str, Any]], folder: Path | None) -> str:
    """The tables; with `folder` also in files, with the figures and the pictures."""
    told, earned = judges(rows), policies(rows)
    seeds = max((own["seeds"] for own in [*told.values(), *earned.values()]), default=0)
    judge_rows = [
        [
            JUDGES.get(name, name),
            *(shown(own[key], 3) for key in JUDGED),
            "" if name == "outcome" else shown(own["ahead"], 3),
        ]
        for name, own in told.items()
    ]
    paid_rows = []
    for name, own in earned.items():
        gain = shown(own["gain"], 3) if "gain" in own and name != "start" else ""
        amounts = {key: shown(own[key], digits) for key, digits in EARNED.items()}
        beta = frozen.get(name, {}).get("model.beta", "")
        tokens = f"{own['tokens'][0]:,.0f}" if name != "start" else ""
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
        table(["judge, a reply by its worst step", *JUDGED.values(), "ahead of outcome"], judge_rows) if told else "",
        table(
            ["PPO, and its start", "true reward", "gain over the start, paired", "KL from the start, nats",
             "tokens a reply", "finished", "tokens sampled in training", "chosen β"],
            paid_rows,
        ) if earned else "",
        note,
    ]  # fmt: skip
    text = "\n\n".join(part for part in parts if part) + "\n"
    if folder is not None:
        kept = {"judges": told, "policies": earned, "rows": rows, "cells": frozen}
        (folder / "process.json").write_text(json.dumps(kept) + "\n")
        (folder / "process.md").write_text(text)
        picture(rows, told, folder / "process.png")
    return text


COLOURS = {"ppo_steps": "#2563eb", "ppo_product": "#0d9488", "ppo_outcome": "#dc2626"}


def picture(rows: Rows, told: Figures, path: Path) -> None:
    """Best of n by judge; what PPO is paid and what is true, as it goes on, each seed in its own units."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6))
    for name, own in told.items():
        means = [own[f"best_of_{n}"] for n in (4, 16)]
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
