"""Results of each yaml in `conf/`: the figures in its header and in the docs.

    python benchmarks/configs.py [--seeds 10] [--jobs 2] [--only joint]

Every run uses the command line like a user, on seeds 1000, 1001, … (the yamls were tuned on 0–3). The figure of a
pendulum run is its number of environment steps, including the expert's and excluding the evaluation's, until the first
of three consecutive validations (10 deterministic episodes) with a mean of at least 950; it is infinite if the run
never gets there. The figure of a token run is the last validation. Finished runs are kept in
`outputs/benchmarks/configs` and not repeated. Writes `results/configs.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning_nlf.moved_yamls import arguments  # noqa: E402
from lightning_nlf.studies.statistics import interval_text, median_interval  # noqa: E402

PENDULUM = [f"pendulum/{name}" for name in ("reinforce", "a2c", "q_actor_critic", "ppo", "joint")]
PENDULUM += ["injection", *(f"pendulum/injection_{kind}" for kind in ("triggered", "weighted", "shaped"))]
PENDULUM += ["pendulum/bc", "pendulum/dagger"]
TOKENS = ["tokens/joint", "tokens/comparison"]
RUNS = Path("outputs/benchmarks/configs")
RESULTS = Path(__file__).parent / "results"
SOLVED, TIMES = 950.0, 3


def run(name: str, seed: int) -> dict:
    """Run one fit in a process of its own, and read its figures from its journal."""
    folder = RUNS / f"{name}-{seed}"
    finished = folder / "finished"
    if not finished.is_file():
        command = [sys.executable, "-m", "lightning_nlf", "fit", *arguments(Path("conf"), name)]
        command += ["--seed_everything", str(seed), "--run_dir", str(folder), "--ckpt_path", "last"]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        finished.touch()
    return {"name": name, "seed": seed} | figures_of(folder / "journal.jsonl")


def figures_of(journal: Path) -> dict[str, float]:
    """Figures of the validation that first solved the task, and of the last one."""
    at_step: dict[int, dict[str, float]] = {}
    for line in journal.read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "metrics":
            at_step.setdefault(record["step"], {}).update(record["values"])
    validations = [values for _, values in sorted(at_step.items()) if "val/return" in values]
    solved = [values["val/return"] >= SOLVED for values in validations]
    firsts = [i for i in range(len(solved) - TIMES + 1) if all(solved[i : i + TIMES])]
    first = validations[firsts[0]] if firsts else {"env_steps": math.inf, "labels": math.inf}
    figures = {name: validations[-1][f"val/{name}"] for name in ("return", "return_sampled")}
    figures |= {"env_steps": first["env_steps"], "labels": first["labels"]}
    return figures | {"decided": validations[-1]["env_steps"], "calls": validations[-1].get("feedback_calls", 0)}


def median_of(rows: list[dict], key: str, digits: int = 0) -> str:
    """`median [low, high]`, as quoted in headers and docs."""
    return interval_text(median_interval([row[key] for row in rows]), digits)


def tables(rows: list[dict]) -> str:
    lines = [
        "| yaml | solved | environment steps to 950 | expert labels by then | last sampled return |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in PENDULUM:
        runs = [row for row in rows if row["name"] == name]
        solved = sum(math.isfinite(row["env_steps"]) for row in runs)
        columns = [median_of(runs, key) for key in ("env_steps", "labels", "return_sampled")]
        lines.append(f"| {name} | {solved}/{len(runs)} | {' | '.join(columns)} |")
    lines += ["", "| yaml | last return, greedy | sampled | tokens | feedback calls |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for name in TOKENS:
        runs = [row for row in rows if row["name"] == name]
        columns = [median_of(runs, "return", 2), median_of(runs, "return_sampled", 2)]
        lines.append(f"| {name} | {' | '.join([*columns, median_of(runs, 'decided'), median_of(runs, 'calls')])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--only", nargs="*", default=[*PENDULUM, *TOKENS], help="run only these yamls and keep the other results"
    )
    options = parser.parse_args()
    todo = [(name, 1000 + seed) for name in options.only for seed in range(options.seeds)]
    print(f"{len(todo)} runs, about {len(todo) * 25 / options.jobs / 60:.0f} minutes if none is finished yet")
    before = json.loads((RESULTS / "configs.json").read_text())["runs"] if (RESULTS / "configs.json").is_file() else []
    rows = [row for row in before if row["name"] not in options.only]
    with ThreadPoolExecutor(options.jobs) as pool:
        for number, row in enumerate(pool.map(lambda job: run(*job), todo), 1):
            rows.append(row)
            print(f"{number}/{len(todo)} {row}", flush=True)
    runs = "1 run" if options.jobs == 1 else f"{options.jobs} runs"
    machine = f"{os.cpu_count()} cores of {platform.machine()}, one thread a run, {runs} at a time"
    note = f"Median and 95 % interval of order statistics over seeds 1000–{999 + options.seeds}; {machine}"
    text = f"{tables(rows)}\n\n{note}; `python benchmarks/configs.py`.\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "configs.json").write_text(json.dumps({"machine": machine, "runs": rows}, indent=1) + "\n")
    (RESULTS / "configs.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
