"""What each pendulum yaml of `conf/` reaches: the figures in its header and in the README.

    python benchmarks/configs.py [--seeds 10] [--jobs 2] [name …]

Every run goes through the command line as a user's would, on seeds 1000, 1001, … (the yamls were tuned on 0–3).
A row counts environment steps, the expert's included and the evaluation's not, up to the first of three consecutive
validations (10 deterministic episodes) with a mean of at least 950; a run that never gets there counts as infinite.
Finished runs are kept in `outputs/benchmarks/configs` and not repeated. Writes `results/configs.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

NAMES = "reinforce a2c q_actor_critic ppo joint injection injection_weighted injection_shaped bc dagger".split()
RUNS = Path("outputs/benchmarks/configs")
RESULTS = Path(__file__).parent / "results"
SOLVED, TIMES = 950.0, 3


def run(name: str, seed: int) -> dict:
    """One fit in a process of its own; its figures from its journal."""
    folder = RUNS / f"{name}-{seed}"
    result = folder / "result.json"
    if not result.is_file():
        command = [sys.executable, "-m", "lightning_nlf", "fit", "--config", f"conf/{name}.yaml"]
        command += ["--seed_everything", str(seed), "--run_dir", str(folder), "--ckpt_path", "last"]
        started = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        figures = figures_of(folder / "journal.jsonl") | {"seconds": time.monotonic() - started}
        result.write_text(json.dumps(figures))
    return {"name": name, "seed": seed, **json.loads(result.read_text())}


def figures_of(journal: Path) -> dict[str, float]:
    """Environment steps to the threshold, labels used by then, and the last sampled return."""
    at_step: dict[int, dict[str, float]] = {}
    for line in journal.read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "metrics":
            at_step.setdefault(record["step"], {}).update(record["values"])
    validations = [values for _, values in sorted(at_step.items()) if "val/return" in values]
    row = 0
    for index, values in enumerate(validations):
        row = row + 1 if values["val/return"] >= SOLVED else 0
        if row == TIMES:
            first = validations[index - TIMES + 1]
            sampled = validations[-1]["val/return_sampled"]
            return {"env_steps": first["env_steps"], "labels": first["labels"], "sampled": sampled}
    return {"env_steps": math.inf, "labels": math.inf, "sampled": validations[-1]["val/return_sampled"]}


def interval(values: list[float], draws: int = 10_000) -> tuple[float, float, float]:
    """Median and its 95 % percentile-bootstrap interval."""
    rng = np.random.default_rng(0)
    sample = np.asarray(values)
    medians = np.median(rng.choice(sample, (draws, len(sample))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975], method="nearest")
    return float(np.median(sample)), float(low), float(high)


def table(rows: list[dict]) -> str:
    lines = [
        "| yaml | solved | environment steps to 950, median [95 %] | expert labels | last sampled return | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        median, low, high = interval([row["env_steps"] for row in own])
        solved = sum(math.isfinite(row["env_steps"]) for row in own)
        labels, sampled, seconds = (np.median([row[key] for row in own]) for key in ("labels", "sampled", "seconds"))
        lines.append(
            f"| {name} | {solved}/{len(own)} | {median:,.0f} [{low:,.0f}, {high:,.0f}] | {labels:,.0f} "
            f"| {sampled:,.0f} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    todo = [(name, 1000 + seed) for name in options.names or NAMES for seed in range(options.seeds)]
    print(f"{len(todo)} runs, about {len(todo) * 25 / options.jobs / 60:.0f} minutes on {options.jobs} cores")
    rows = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for done, row in enumerate(pool.map(lambda job: run(*job), todo), 1):
            rows.append(row)
            print(f"{done}/{len(todo)} {row}", flush=True)
    machine = f"{os.cpu_count()} cores of {platform.machine()}, one thread a run, {options.jobs} runs at a time"
    text = f"{table(rows)}\n\nSeeds 1000–{1000 + options.seeds - 1}; {machine}; `python benchmarks/configs.py`.\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "configs.json").write_text(json.dumps({"machine": machine, "runs": rows}, indent=1) + "\n")
    (RESULTS / "configs.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
