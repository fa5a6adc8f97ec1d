"""Speed-up of learning with expert feedback over tuned REINFORCE: equally tuned arms of `speedup.yaml`, fresh seeds.

    python benchmarks/speedup.py                                     # all arms without a committed result
    python benchmarks/speedup.py --only joint/all                    # one arm, with its chosen cell
    python benchmarks/speedup.py --only joint/all --tune             # also tune its 16 cells again

Protocol: each arm has 16 cells on seeds 0–9. The best cell, by the geometric mean of the medians of both measures, is
frozen and runs on fresh seeds from 1000. The measures are sust (the mode of the policy) and sto (the sampling policy):
environment steps, including the expert's and excluding the evaluation's, until the first of three consecutive
evaluations of 10 episodes with a mean of at least 950. Evaluations happen after an iteration if at least 100 steps were
collected since the last one. A failed run counts as infinite and is never dropped. A ratio is the median of tuned
REINFORCE divided by the median of the arm. The claim is the lower bound of an interval that holds for all arms and both
measures together (Bonferroni).

Finished runs are kept in `outputs/benchmarks/speedup` and not repeated. Arms with a committed result are repeated only
with --only. Writes `results/speedup*`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # like the command line; must be set before torch is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import yaml
from tqdm import tqdm

from benchmarks.study import report
from benchmarks.study.convergence import MODES, Progress, run
from benchmarks.study.fleet import Fleet
from benchmarks.study.learner import read
from benchmarks.study.tuning import Race, cells, winner
from lightning_nlf.networks import GaussianPolicy

HERE = Path(__file__).parent
ARMS: dict[str, Any] = yaml.safe_load((HERE / "speedup.yaml").read_text())
RUNS = Path("outputs/benchmarks/speedup")
FROZEN = HERE / "results" / "speedup_cells.json"
TUNING = range(10)
FRESH = range(1000, 1050)
SLOTS = 160


def arms() -> dict[str, dict[str, Any]]:
    """Arms by "arm/setting": the yaml, the changes in every cell, the grid, and the budgets in environment steps."""
    all_arms = {}
    for name, arm in ARMS["arms"].items():
        for setting in arm.get("settings", ["all"]):
            overrides = arm.get(setting, {})
            changes = ARMS["settings"][setting] if arm.get("expert", True) else {}
            all_arms[f"{name}/{setting}"] = {
                "yaml": overrides.get("yaml", arm["yaml"]),
                "changes": {**arm.get("changes", {}), **changes, **overrides.get("changes", {})},
                "grid": overrides.get("grid", arm.get("grid", {})),
                "tuning": overrides.get("tuning", arm.get("tuning", ARMS["budget"]["tuning"])),
                "budget": overrides.get("budget", arm.get("budget", ARMS["budget"]["fresh"])),
            }
    return all_arms


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Finished runs by name; incomplete lines of killed processes are ignored."""
    rows = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["run"]] = row
    return rows


def keep(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def tune(name: str) -> dict[str, Any]:
    """Winning cell of an arm from 16 × 10 runs; finished runs are not repeated."""
    arm = arms()[name]
    grid = cells(arm["grid"])
    path = RUNS / "tuning" / f"{name.replace('/', '-')}.jsonl"
    finished = read_rows(path)
    race = Race(len(grid), len(TUNING))

    def job(cell: int, seed: int) -> dict[str, Any]:
        key = f"{cell}-{seed}"
        progress = race.progress[cell][seed]
        row = finished.get(key)
        if row is None:
            changes = arm["changes"] | grid[cell]
            row = {"run": key} | run(fleet, arm["yaml"], changes, seed, arm["tuning"], progress, race.watch)
            del row["curves"]
            keep(path, row)
        progress.finish(row)
        race.watch()
        return row

    fleet = _fleet(name)
    jobs = [partial(job, cell, seed) for seed in TUNING for cell in range(len(grid))]
    rows = {row["run"]: row for row in fleet.run(jobs)}
    results = [[rows[f"{cell}-{seed}"] for seed in TUNING] for cell in range(len(grid))]
    best = winner(results)
    steps = {mode: [run[mode]["steps"] for run in results[best]] for mode in MODES}
    return {"arm": name, "cell": grid[best]} | steps


def confirm(part: list[tuple[str, int]], frozen: dict[str, Any]) -> None:
    """Run a list of (arm, seed) in one process."""
    all_arms = arms()

    def job(fleet: Fleet, name: str, seed: int) -> None:
        arm = all_arms[name]
        changes = arm["changes"] | frozen[name]
        row = {"run": f"{name}-{seed}", "arm": name, "seed": seed}
        keep(_fresh(name), row | run(fleet, arm["yaml"], changes, seed, arm["budget"], Progress()))

    shapes: dict[str, list[tuple[str, int]]] = {}  # all policies of a fleet have the same shape
    for name, seed in part:
        shapes.setdefault(str(_policy(name)), []).append((name, seed))
    for jobs in shapes.values():
        fleet = _fleet(jobs[0][0])
        for _ in fleet.run([partial(job, fleet, name, seed) for name, seed in jobs]):
            pass


def _fresh(name: str) -> Path:
    return RUNS / "fresh" / f"{name.replace('/', '-')}.jsonl"


def _policy(name: str) -> GaussianPolicy:
    policy = read(arms()[name]["yaml"], arms()[name]["changes"], 0)[0].policy
    assert isinstance(policy, GaussianPolicy)
    return policy


def _fleet(name: str) -> Fleet:
    torch.set_num_threads(1)
    return Fleet(_policy(name), SLOTS)


def study(names: list[str], seeds: range, again: bool, tune_again: bool, jobs: int) -> None:
    """Tune arms, run the fresh seeds and write the report. Args: again: also run arms with a committed result."""
    frozen: dict[str, Any] = {}
    if FROZEN.is_file() and not tune_again:
        frozen = {name: row["cell"] for name, row in json.loads(FROZEN.read_text()).items()}
    all_arms = arms()
    to_tune = [name for name in names if name not in frozen]
    fresh = {name: read_rows(_fresh(name)) for name in names}
    results = {} if again else report.committed(HERE / "results")
    settled = {name: runs for name, runs in results.items() if {run["seed"] for run in runs} >= set(seeds)}
    to_run = [name for name in names if name not in settled]
    todo = [(name, seed) for seed in seeds for name in to_run if f"{name}-{seed}" not in fresh[name]]
    most_steps = sum(160 * all_arms[name]["tuning"] for name in to_tune if all_arms[name]["grid"])
    most_steps += sum(all_arms[name]["budget"] for name, _ in todo)
    print(f"{len(to_tune)} arms to tune with 16 cells and 10 seeds, {len(todo)} runs on fresh seeds: "
          f"at most {most_steps / 1e6:,.0f}M environment steps of training", flush=True)  # fmt: skip
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        table = json.loads(FROZEN.read_text()) if FROZEN.is_file() else {}
        tuned = pool.map(tune, [name for name in to_tune if all_arms[name]["grid"]])
        table |= {name: {"cell": {}} for name in to_tune if not all_arms[name]["grid"]}
        FROZEN.parent.mkdir(exist_ok=True)
        FROZEN.write_text(json.dumps(report.plain(table), indent=1) + "\n")
        for row in tqdm(tuned, desc="tuning, arms", total=sum(bool(all_arms[name]["grid"]) for name in to_tune)):
            table[row.pop("arm")] = row
            FROZEN.write_text(json.dumps(report.plain(table), indent=1) + "\n")
        frozen = {name: row["cell"] for name, row in table.items()}
        parts = [pool.submit(confirm, todo[i::jobs], frozen) for i in range(jobs)]
        with tqdm(desc="fresh seeds, runs", total=len(todo)) as bar:
            while not all(part.done() for part in parts):
                time.sleep(1)
                bar.update(sum(len(read_rows(_fresh(name))) - len(fresh[name]) for name in names) - bar.n)
        for part in parts:
            part.result()
    rows = {name: settled.get(name) or list(read_rows(_fresh(name)).values()) for name in names}
    rows = {name: [row for row in arm_runs if row["seed"] in seeds] for name, arm_runs in rows.items()}
    machine = f"{os.cpu_count()} cores of {platform.machine()}"
    report.write(rows, table, all_arms, machine, HERE / "results", whole=set(names) == set(all_arms))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    all_arms = arms()
    parser.add_argument("--only", nargs="*", metavar="ARM/SETTING", help=f"one or more of {', '.join(all_arms)}")
    parser.add_argument("--seeds", type=int, default=len(FRESH), help="fresh seeds, from 1000")
    parser.add_argument("--tune", action="store_true", help="choose the cells again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    names = options.only or list(all_arms)
    unknown = set(names) - set(all_arms)
    if unknown:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; choose from {', '.join(all_arms)}")
    study(names, range(1000, 1000 + options.seeds), bool(options.only) or options.tune, options.tune, options.jobs)


if __name__ == "__main__":
    main()
