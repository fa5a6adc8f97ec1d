"""What the studies of feedback were to show, by the bounds of their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.side_by_side.feedback_figures import KINDS, crossing, endings, gain, paired, ratio
from benchmarks.side_by_side.rlhf_report import Rows, interval

Interval = tuple[float, float, float]  # the figure, and its bounds
UNSCORED = ("ilf_unscored", "sdpo", "cft", "coh", "fcp", "c3po")  # learn from critiques alone


@dataclass(frozen=True)
class Target:
    title: str
    found: Interval
    bound: float
    most: bool = False  # at most `bound`, else at least

    @property
    def met(self) -> bool:
        _, low, high = self.found
        return high <= self.bound if self.most else low >= self.bound


def table(targets: list[Target]) -> list[str]:
    lines = ["| what | figure | 95 % interval | target | met by its bound |", "| --- " * 5 + "|"]
    for each in targets:
        one, low, high = (f"{x:.3f}" for x in each.found)
        target = f"{'≤' if each.most else '≥'} {each.bound:g}"
        lines.append(f"| {each.title} | {one} | [{low}, {high}] | {target} | {'yes' if each.met else 'no'} |")
    return lines


def convergence(rows: Rows, study: dict[str, Any]) -> list[Target]:
    if {"joint_32", "sft_32", "joint_all", "pg"} - {row["arm"] for row in rows}:
        return []

    def tokens(arm: str, kind: str) -> Interval:
        pairs = [[crossing(row, kind, study["thresholds"][kind]) for row in pair] for pair in paired(rows, arm, "pg")]
        return ratio([(own, base) for own, base in pairs])

    few = [arm for arm in endings(rows) if arm.endswith("_128") and arm.startswith(("joint", "injection"))]
    best = min(few, key=lambda arm: tokens(arm, "sampled"))
    few_responses = "joint with 32 expected responses, sampled, over SFT on them"
    soonest = f"{best}, the soonest with 128, tokens to sampled 0.85, of pg's"
    return [
        Target(few_responses, gain(rows, "joint_32", "sft_32", "sampled"), 0.04),
        Target("joint with all, tokens to greedy 0.9, of pg's", tokens("joint_all", "greedy"), 0.7, most=True),
        Target(soonest, tokens(best, "sampled"), 0.6, most=True),
        Target("the same, sampled at the end, over pg", gain(rows, best, "pg", "sampled"), 0.0),
    ]


def comparison(rows: Rows, study: dict[str, Any]) -> list[Target]:
    arms = endings(rows)
    if {"start", "sft_128", *UNSCORED} - set(arms):
        return []
    starts = [row for row in rows if row["arm"] == "start"]

    def revised(kind: str, over: str = "") -> Interval:
        return interval([row[f"revised_{kind}"] - (row[f"{over}{kind}"] if over else 0) for row in starts])

    best = max(UNSCORED, key=lambda arm: arms[arm]["sampled"][0])
    found = [Target(f"R(y₁), {kind}", revised(kind), bound) for kind, bound in zip(KINDS, (0.95, 0.87), strict=True)]
    for kind in KINDS:
        over = revised(kind, "revised_shuffled_")
        found.append(Target(f"R(y₁), {kind}, over that after another reply's critique", over, 0.15))
    title = f"{best}, the best without a score, sampled, over SFT on 128 expected responses"
    return [*found, Target(title, gain(rows, best, "sft_128", "sampled"), 0.0)]
