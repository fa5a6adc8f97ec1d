"""Targets of the feedback studies, compared with the bounds of intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from benchmarks.side_by_side.feedback_figures import (
    BUDGETS,
    KINDS,
    Row,
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
from lightning_nlf.studies.statistics import Interval, bounds

UNSCORED = ("ilf_approved", "ilf_unscored", "sdpo", "cft", "coh", "fcp", "c3po")  # learn from critiques alone


@dataclass(frozen=True)
class Target:
    title: str
    figure: Interval
    bound: float
    at_most: bool = False  # at most `bound`, else at least

    @property
    def is_met(self) -> bool:
        _, low, high = self.figure
        return high <= self.bound if self.at_most else low >= self.bound


def table(targets: list[Target]) -> list[str]:
    lines = ["| what | figure | 95 % interval | target | met by its bound |", "| --- " * 5 + "|"]
    for goal in targets:
        target = f"{'≤' if goal.at_most else '≥'} {goal.bound:g}"
        verdict = "yes" if goal.is_met else "no"
        lines.append(f"| {goal.title} | {goal.figure[0]:.3f} | {bounds(*goal.figure[1:], 3)} | {target} | {verdict} |")
    return lines


def convergence(rows: Rows, study: dict[str, Any]) -> list[Target]:
    if {"joint_32", "sft_32", "joint_all", "pg"} - {row["arm"] for row in rows}:
        return []

    def tokens(arm: str, kind: str) -> Interval:
        return ratio(paired(rows, arm, "pg"), partial(crossing, kind=kind, threshold=study["thresholds"][kind]))

    few = [arm for arm in endings(rows) if arm.endswith("_128") and arm.startswith(("joint", "injection"))]
    best = min(few, key=lambda arm: tokens(arm, "sampled"))
    few_responses = "joint with 32 expected responses, sampled, over SFT on them"
    soonest = f"{best}, the soonest with 128, tokens to sampled 0.85, of pg's"
    sampled = itemgetter("sampled")
    return [
        Target(few_responses, gain(paired(rows, "joint_32", "sft_32"), sampled), 0.04),
        Target("joint with all, tokens to greedy 0.9, of pg's", tokens("joint_all", "greedy"), 0.7, at_most=True),
        Target(soonest, tokens(best, "sampled"), 0.6, at_most=True),
        Target("the same, sampled at the end, over pg", gain(paired(rows, best, "pg"), sampled), 0.0),
    ]


def comparison(rows: Rows, study: dict[str, Any]) -> list[Target]:
    arms = endings(rows)
    if {"start", "sft_128", *UNSCORED} - set(arms):
        return []
    starts = [row for row in rows if row["arm"] == "start"]
    levels = zip(KINDS, (0.95, 0.87), strict=True)
    targets = [Target(f"R(y₁), {kind}", mean(starts, itemgetter(f"revised_{kind}")), bound) for kind, bound in levels]
    for kind in KINDS:
        title = f"R(y₁), {kind}, over that after another reply's critique"
        targets.append(Target(title, mean(starts, over_shuffled(kind)), 0.15))
    arm_rows = {arm: [row for row in rows if row["arm"] == arm] for arm in UNSCORED}

    def best_by(figure: Callable[[Row], float]) -> str:
        return max(UNSCORED, key=lambda arm: mean(arm_rows[arm], figure))

    for name, count in study["budgets"].items():
        sampled = after(name, "sampled")
        best = best_by(sampled)
        title = f"{best}, the best without a score after {count:,} {BUDGETS[name]}, sampled, over SFT on 128 expected"
        targets.append(Target(title, gain(paired(rows, best, "sft_128"), sampled), 0.0))
    return targets
