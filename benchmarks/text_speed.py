"""Speed of text generation and training, compared with transformers and TRL on the same weights and batches.

    pip install -e '.[text,benchmark]'
    python benchmarks/text_speed.py                    # everything; about 15 minutes on one quiet core
    python benchmarks/text_speed.py --only sft          # one section, or all rows whose names begin with this

Rows of a section take turns (A B A B …), five times each, every row in a process of its own with one core and one
thread. Before timing, the losses of both sides must agree to 1e-4 in fp32 after three steps. "best" is TRL's fastest
mode on a CPU: bf16, eager attention, no gradient checkpointing. On both sides freed memory stays with the process, like
in our command line, which makes both faster. The tables show medians with minimum and maximum. Ratios are of geometric
means, repeat by repeat, with the 95 % t interval of their logarithm; a claim is the bound of its interval. Memory is
the peak of the process. Writes `results/text_speed.{json,md}`; rows measured with --only replace the old ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.side_by_side.pinned import Pinned
from lightning_nlf.studies.statistics import Interval, bounds, median, ratio_interval

CHECKED_LR = 1e-3
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "lightning", "transformers", "trl")
PEERS = ("transformers", "trl", "datasets")
TITLES = {
    "generation": "New tokens a second, prompt 32, reply 64",
    "sft": "SFT, 32 rows: milliseconds an optimizer step",
    "reward": "Reward model, 16 pairs",
    "dpo": "DPO, 16 pairs",
    "grpo": "GRPO, 8 prompts × 8 replies: sampling and the step",
}


@dataclass(frozen=True)
class Row:
    """One line of a table; `call` returns {"value": …} for each repeat."""

    name: str  # section/row
    title: str
    call: str  # module.function of `benchmarks.side_by_side`
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def section(self) -> str:
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Claim:
    title: str
    ours: str
    peer: str
    target: float


def generating() -> list[Row]:
    rows_out = []
    for shape, counts in (("nano", (32, 128)), ("small", (128,))):
        for rows in counts:
            shared_arguments: dict[str, Any] = {"shape": shape, "rows": rows}
            for mode, label in (("fp32", "fp32"), ("bf16", "bf16")):
                name = f"generation/hf-{shape}-{rows}-{mode}"
                rows_out.append(
                    Row(
                        name,
                        f"transformers, {shape}, {rows} rows, {label}",
                        "text_peers.generation",
                        shared_arguments | {"mode": mode},
                    )
                )
            for mode, copies in (("fp32", 1), ("bf16", 1), ("bf16", 8)):
                shared = ", prompt computed once for 8 replies" if copies > 1 else ""
                name = f"generation/ours-{shape}-{rows}-{mode}" + ("-shared" if copies > 1 else "")
                arguments = shared_arguments | {"mode": mode, "copies": copies}
                rows_out.append(
                    Row(name, f"ours, {shape}, {rows} rows, {mode}{shared}", "text_ours.tokens_per_second", arguments)
                )
    return rows_out


def training() -> list[Row]:
    rows_out = []
    for kind in ("sft", "reward", "dpo", "grpo"):
        for cached in (False, True) if kind == "dpo" else (False,):
            shared_arguments: dict[str, Any] = {"shape": "nano"} | ({"cached": True} if cached else {})
            suffix, label = ("-cached", ", reference cached") if cached else ("", "")
            for mode in ("default", "best"):
                rows_out.append(
                    Row(
                        f"{kind}/trl-{mode}{suffix}",
                        f"TRL, {mode}{label}",
                        f"text_peers.{kind}",
                        shared_arguments | {"mode": mode},
                    )
                )
            for mode in ("fp32", "bf16"):
                rows_out.append(
                    Row(
                        f"{kind}/ours-{mode}{suffix}",
                        f"ours, {mode}{label}",
                        f"text_ours.{kind}",
                        shared_arguments | {"mode": mode},
                    )
                )
    return rows_out


def claims() -> list[Claim]:
    all_claims = [
        Claim(
            f"generation, {shape}, {rows} rows{', prompt shared by 8' if shared else ''} ÷ transformers in bf16",
            f"generation/ours-{shape}-{rows}-bf16{shared}",
            f"generation/hf-{shape}-{rows}-bf16",
            2.5,
        )
        for shape, rows in (("nano", 32), ("nano", 128), ("small", 128))
        for shared in ("", "-shared")
    ]
    for kind, target in (("sft", 1.5), ("reward", 1.5), ("dpo", 2.0), ("grpo", 2.5)):
        all_claims.append(Claim(f"{kind}, × as fast as TRL's best", f"{kind}/ours-bf16", f"{kind}/trl-best", target))
    all_claims.append(
        Claim("dpo, reference cached, × as fast as TRL's best", "dpo/ours-bf16-cached", "dpo/trl-best-cached", 2.0)
    )
    return all_claims


def check_losses(chosen: list[Row], folder: str) -> dict[str, tuple[float, float]]:
    """Losses of TRL and of ours in fp32 after three steps large enough to change the loss, by section.

    Raises:
        SystemExit: the losses differ by more than 1e-4, so the times would compare different work.
    """
    losses = {}
    for kind, changes in (("sft", {}), ("reward", {}), ("dpo", {"cached": True})):  # the same pairs in every step
        if not any(row.section == kind for row in chosen):
            continue
        arguments = {"shape": "nano", "steps": 1, "lr": CHECKED_LR} | changes
        peer, ours = (
            alone(Row("", "", f"{side}.{kind}", arguments | {"mode": mode}), folder)["loss"]
            for side, mode in (("text_peers", "default"), ("text_ours", "fp32"))
        )
        losses[kind] = (peer, ours)
        print(f"{kind}: loss of the fourth step {peer:.6f} there, {ours:.6f} here", flush=True)
        if abs(peer - ours) > 1e-4:
            sys.exit(f"error: {kind}: the losses differ, so the two sides do not do the same work")
    return losses


def alone(row: Row, folder: str) -> dict[str, Any]:
    process = Pinned(1)
    try:
        return process(row.call, repeat=0, folder=folder, **row.arguments)
    finally:
        process.close()


def measured(chosen: list[Row], repeats: int, folder: str) -> dict[str, list[dict[str, Any]]]:
    """Figures of each call, by row. Rows of one section take turns."""
    calls_by_row: dict[str, list[dict[str, Any]]] = {row.name: [] for row in chosen}
    for _, group in groupby(chosen, lambda row: row.section):
        turn = list(group)
        processes = {row.name: Pinned(1) for row in turn}
        try:
            for repeat in range(repeats):
                for row in turn:
                    figures = processes[row.name](row.call, repeat=repeat, folder=folder, **row.arguments)
                    memory = processes[row.name]("pinned.peak_memory")
                    calls_by_row[row.name].append(figures | memory)
                    print(f"{row.name} {repeat + 1}/{repeats}: {figures['value']:,.1f}", flush=True)
        finally:
            for process in processes.values():
                process.close()
    return calls_by_row


def report_text(
    chosen: list[Row],
    calls_by_row: dict[str, list[dict[str, Any]]],
    losses: dict[str, tuple[float, float]],
    repeats: int,
) -> str:
    values = {name: [float(x["value"]) for x in calls] for name, calls in calls_by_row.items()}
    lines = ["| what | ratio | 95 % interval | target | met by its bound |", "| --- | --- | --- | --- | --- |"]
    for claim in claims():
        if claim.ours in values and claim.peer in values:
            middle, low, high = ratio(claim, values)
            verdict = "yes" if low >= claim.target else "no"
            lines.append(f"| {claim.title} | {middle:.2f} | {bounds(low, high, 2)} | ≥ {claim.target} | {verdict} |")
    parts = ["\n".join(lines)]
    for section, title in TITLES.items():
        section_rows = [row for row in chosen if row.section == section]
        if section_rows:
            table = ["| what | median (least–most) | peak memory, MiB |", "| --- | --- | --- |"]
            for row in section_rows:
                x, memory = values[row.name], max(call.get("memory", 0.0) for call in calls_by_row[row.name])
                peak = f"{memory:,.0f}" if memory else "–"
                table.append(f"| {row.title} | {median(x):,.0f} ({min(x):,.0f}–{max(x):,.0f}) | {peak} |")
            parts.append(f"**{title}**\n\n" + "\n".join(table))
    if losses:
        agreed = ", ".join(f"{kind} {peer:.5f} and {ours:.5f}" for kind, (peer, ours) in losses.items())
        parts.append(
            f"Losses of the fourth step in fp32, there and here, at a learning rate of {CHECKED_LR:g}: {agreed}."
        )
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    parts.append(
        "nano: 4 layers, d = 128, vocabulary 512; small: 6 layers, d = 384, vocabulary 4,096. "
        f"{repeats} repeats in turns on one core of {os.cpu_count()}; {packages}; `python benchmarks/text_speed.py`."
    )
    return "\n\n".join(parts) + "\n"


def ratio(claim: Claim, values: dict[str, list[float]]) -> Interval:
    """Speed relative to the peer, repeat by repeat: a ratio of tokens per second, or the inverse ratio of times."""
    if claim.ours.startswith("generation"):
        return ratio_interval(values[claim.ours], values[claim.peer], paired=True)
    return ratio_interval(values[claim.peer], values[claim.ours], paired=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a section or a row, by the beginning of its name")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = [*generating(), *training()]
    chosen = [row for row in rows if row.name.startswith(options.only)]
    missing = [name for name in PEERS if find_spec(name) is None]
    if missing:
        parser.error(f"{', '.join(missing)} not installed: pip install -e '.[text,benchmark]'")
    if not chosen:
        parser.error(f"--only {options.only}: the rows are {', '.join(row.name for row in rows)}")
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"the machine is busy (load {load:.1f}): figures will be too low")
    with tempfile.TemporaryDirectory() as folder:
        losses = check_losses(chosen, folder)
        calls_by_row = measured(chosen, options.repeats, folder)
    path = RESULTS / "text_speed.json"
    before = json.loads(path.read_text()) if path.is_file() else {"losses": {}, "rows": {}}
    calls_by_row, losses = before["rows"] | calls_by_row, before["losses"] | losses
    text = report_text([row for row in rows if row.name in calls_by_row], calls_by_row, losses, options.repeats)
    print(f"\n{text}")
    path.write_text(json.dumps({"losses": losses, "rows": calls_by_row}, indent=1) + "\n")
    path.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
