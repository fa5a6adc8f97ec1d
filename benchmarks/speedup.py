"""How much faster feedback makes learning: every arm of `speedup.yaml`, tuned with the same care, on fresh seeds.

    python benchmarks/speedup.py                                     # every arm that has no committed result
    python benchmarks/speedup.py --only joint/all                    # one row again, with the cell that was chosen
    python benchmarks/speedup.py --only joint/all --tune             # and its 16 cells

Protocol: 16 cells an arm on seeds 0–9; the best by the geometric mean of the medians of both measures is frozen; then
fresh seeds from 1000. sust (the mode of the policy) and sto (the policy as it samples): environment steps, the expert's
included and the evaluation's not, to the first of three consecutive evaluations of 10 episodes with a mean of at least
950, evaluated after an iteration if at least 100 steps were collected since the last. A run that fails is infinite and
never dropped. Ratios are medians of tuned REINFORCE over the arm's; the claim is the lower bound of an interval that
holds for all arms and both measures together (Bonferroni).

Finished runs are kept in `outputs/benchmarks/speedup` and not repeated, and nor are arms with a committed result but
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

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is there
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
    """By "arm/setting": the yaml, its changes in every cell, the grid and the budgets in environment steps."""
    found = {}
    for name, arm in ARMS["arms"].items():
        for setting in arm.get("settings", ["all"]):
            own = arm.get(setting, {})
            changes = ARMS["settings"][setting] if arm.get("expert", True) else {}
            found[f"{name}/{setting}"] = {
                "yaml": own.get("yaml", arm["yaml"]),
                "changes": {**arm.get("changes", {}), **changes, **own.get("changes", {})},
                "grid": own.get("grid", arm.get("grid", {})),
                "tuning": own.get("tuning", arm.get("tuning", ARMS["budget"]["tuning"])),
                "budget": own.get("budget", arm.get("budget", ARMS["budget"]["fresh"])),
            }
    return found


def kept(path: Path) -> dict[str, dict[str, Any]]:
    """The finished runs, by their name; a line that a killed process left half written is none."""
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
    """The winning cell of an arm, from 16 × 10 runs; what is already kept is not run again."""
    arm = arms()[name]
    grid = cells(arm["grid"])
    path = RUNS / "tuning" / f"{name.replace('/', '-')}.jsonl"
    done = kept(path)
    race = Race(len(grid), len(TUNING))

    def job(cell: int, seed: int) -> dict[str, Any]:
        key = f"{cell}-{seed}"
        progress = race.progress[cell][seed]
        row = done.get(key)
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
    """Runs the fresh seeds of a list of (arm, seed) in one process."""
    known = arms()

    def job(fleet: Fleet, name: str, seed: int) -> None:
        arm = known[name]
        changes = arm["changes"] | frozen[name]
        row = {"run": f"{name}-{seed}", "arm": name, "seed": seed}
        keep(_fresh(name), row | run(fleet, arm["yaml"], changes, seed, arm["budget"], Progress()))

    shapes: dict[str, list[tuple[str, int]]] = {}  # a fleet has policies of one shape
    for name, seed in part:
        shapes.setdefault(str(_policy(name)), []).append((name, seed))
    for own in shapes.values():
        fleet = _fleet(own[0][0])
        for _ in fleet.run([partial(job, fleet, name, seed) for name, seed in own]):
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
    """Args: again: what is committed is run anyway."""
    frozen: dict[str, Any] = {}
    if FROZEN.is_file() and not tune_again:
        frozen = {name: row["cell"] for name, row in json.loads(FROZEN.read_text()).items()}
    known = arms()
    to_tune = [name for name in names if name not in frozen]
    fresh = {name: kept(_fresh(name)) for name in names}
    found = {} if again else report.committed(HERE / "results")
    settled = {name: runs for name, runs in found.items() if {run["seed"] for run in runs} >= set(seeds)}
    to_run = [name for name in names if name not in settled]
    todo = [(name, seed) for seed in seeds for name in to_run if f"{name}-{seed}" not in fresh[name]]
    most = sum(160 * known[name]["tuning"] for name in to_tune if known[name]["grid"])
    most += sum(known[name]["budget"] for name, _ in todo)
    print(f"{len(to_tune)} arms to tune with 16 cells and 10 seeds, {len(todo)} runs on fresh seeds: "
          f"at most {most / 1e6:,.0f}M environment steps of training", flush=True)  # fmt: skip
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        table = json.loads(FROZEN.read_text()) if FROZEN.is_file() else {}
        tuned = pool.map(tune, [name for name in to_tune if known[name]["grid"]])
        table |= {name: {"cell": {}} for name in to_tune if not known[name]["grid"]}
        FROZEN.parent.mkdir(exist_ok=True)
        FROZEN.write_text(json.dumps(report.plain(table), indent=1) + "\n")
        for row in tqdm(tuned, desc="tuning, arms", total=sum(bool(known[name]["grid"]) for name in to_tune)):
            table[row.pop("arm")] = row
            FROZEN.write_text(json.dumps(report.plain(table), indent=1) + "\n")
        frozen = {name: row["cell"] for name, row in table.items()}
        parts = [pool.submit(confirm, todo[i::jobs], frozen) for i in range(jobs)]
        with tqdm(desc="fresh seeds, runs", total=len(todo)) as bar:
            while not all(part.done() for part in parts):
                time.sleep(1)
                bar.update(sum(len(kept(_fresh(name))) - len(fresh[name]) for name in names) - bar.n)
        for part in parts:
            part.result()
    rows = {name: settled.get(name) or list(kept(_fresh(name)).values()) for name in names}
    rows = {name: [row for row in own if row["seed"] in seeds] for name, own in rows.items()}
    machine = f"{os.cpu_count()} cores of {platform.machine()}"
    report.write(rows, table, known, machine, HERE / "results", whole=set(names) == set(known))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = arms()
    parser.add_argument("--only", nargs="*", metavar="ARM/SETTING", help=f"of {', '.join(known)}")
    parser.add_argument("--seeds", type=int, default=len(FRESH), help="fresh seeds, from 1000")
    parser.add_argument("--tune", action="store_true", help="choose the cells again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    names = options.only or list(known)
    unknown = set(names) - set(known)
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    study(names, range(1000, 1000 + options.seeds), bool(options.only) or options.tune, options.tune, options.jobs)


if __name__ == "__main__":
    main()
