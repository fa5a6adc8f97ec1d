"""Does what the teacher says help a language model? Two studies on sourced answers, each through its own yamls.

    pip install -e '.[text]'
    python benchmarks/feedback.py convergence                   # joint and injection against policy gradient
    python benchmarks/feedback.py comparison                    # all that learns from critiques, at equal budgets
    python benchmarks/feedback.py comparison --only ilf sdpo    # these arms again

`convergence`: sampled tokens and feedback calls until 192 validation prompts earn .9 greedily, or .85 sampled, in two
validations one after the other; five starts by three seeds, paired. `comparison`: what 512 held-out prompts earn,
greedily and sampled, when each of three budgets is spent: tokens, optimizer steps, feedback calls; five starts by two
seeds. A cell of each arm's grid is chosen on one start and two seeds that are used for nothing else. Gains and ratios
are paired with policy gradient's, with 95 % t intervals over starts.

Finished runs are kept in `outputs/benchmarks/feedback` and not repeated. Writes `results/feedback_STUDY*`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml
from tqdm import tqdm

from benchmarks.rlhf import kept
from benchmarks.study.tuning import cells

HERE = Path(__file__).parent
STUDIES: dict[str, Any] = yaml.safe_load((HERE / "feedback.yaml").read_text())
RUNS = Path("outputs/benchmarks/feedback")
TUNING = [(900, 900), (900, 901)]  # start and seed
STARTS = 5
FRESH = {
    study: [(start, 1000 + start * 10 + seed) for start in range(STARTS) for seed in range(seeds)]
    for study, seeds in (("convergence", 3), ("comparison", 2))
}
Job = tuple[str, str, dict[str, Any], int, int]  # study, arm, cell, start, seed


def job(study: str, arm: str, cell: dict[str, Any], start: int, seed: int) -> None:
    """One run, in a process of its own; its row is kept."""
    from benchmarks.side_by_side import feedback_runs  # torch, in the process that needs it

    folder = RUNS.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    method = {"budgets": STUDIES[study]["budgets"]} | STUDIES[study]["arms"][arm]
    row = {"study": study, "arm": arm, "cell": cell, "start": start, "seed": seed}
    row |= feedback_runs.run(arm, method, cell, start, seed, testing=(start, seed) not in TUNING)
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def begin(start: int) -> None:
    """What the runs of a start begin from, in a process of its own."""
    from benchmarks.side_by_side import feedback_runs

    RUNS.mkdir(parents=True, exist_ok=True)
    os.chdir(RUNS)
    feedback_runs.start(start, STUDIES["pools"])


def grid(study: str, arm: str) -> list[dict[str, Any]]:
    return cells(STUDIES[study]["arms"][arm].get("grid", {}))


def key(row: dict[str, Any]) -> str:
    return json.dumps([row["study"], row["arm"], row["cell"], row["start"], row["seed"]])


def run_all(jobs: list[Job], processes: int, what: str) -> None:
    """Those that have no row yet, the starts before."""
    done = {key(row) for row in kept(RUNS / "rows.jsonl")}
    todo = [
        each
        for each in jobs
        if key(dict(zip(("study", "arm", "cell", "start", "seed"), each, strict=True))) not in done
    ]
    context = get_context("forkserver")  # a process for each run, from one that has imported what takes seconds
    context.set_forkserver_preload(["benchmarks.side_by_side.feedback_runs"])
    with ProcessPoolExecutor(processes, context, max_tasks_per_child=1) as pool:
        starts = [pool.submit(begin, start) for start in sorted({each[3] for each in todo})]
        for future in tqdm(as_completed(starts), desc="starts", total=len(starts)):
            future.result()
        futures = [pool.submit(job, *each) for each in todo]
        for future in tqdm(as_completed(futures), desc=f"{what}, runs", total=len(futures)):
            future.result()


def chosen(study: str, arms: list[str]) -> dict[str, dict[str, Any]]:
    """Of each arm the cell with the highest mean of what a sample earns over the last three validations."""
    from benchmarks.side_by_side.feedback_figures import ending

    rows = [row for row in kept(RUNS / "rows.jsonl") if row["study"] == study and (row["start"], row["seed"]) in TUNING]

    def earned(arm: str, cell: dict[str, Any]) -> float:
        own = [ending(row) for row in rows if row["arm"] == arm and row["cell"] == cell]
        return sum(own) / len(own)

    return {arm: max(grid(study, arm), key=lambda cell, arm=arm: earned(arm, cell)) for arm in arms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=FRESH)
    parser.add_argument("--only", nargs="*", metavar="ARM", help="these, with the cells that were chosen")
    parser.add_argument("--tune", action="store_true", help="choose the cells again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    study, known = options.study, STUDIES[options.study]["arms"]
    # ratios and gains are paired with these
    arms = list(dict.fromkeys([*STUDIES[study]["paired"], *options.only])) if options.only else list(known)
    if unknown := set(arms) - set(known):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    file = HERE / "results" / f"feedback_{study}_cells.json"
    frozen = json.loads(file.read_text()) if file.is_file() else {}
    to_tune = [arm for arm in arms if options.tune or arm not in frozen]
    tuned = [arm for arm in to_tune if len(grid(study, arm)) > 1]
    trials = [(study, arm, cell, *each) for arm in tuned for cell in grid(study, arm) for each in TUNING]
    print(f"{len(trials)} runs to tune and {len(arms) * len(FRESH[study])} fresh ones", flush=True)
    run_all(trials, options.jobs, "tuning")
    frozen |= {arm: grid(study, arm)[0] for arm in to_tune} | chosen(study, tuned)
    file.write_text(json.dumps(frozen, indent=1) + "\n")
    run_all([(study, arm, frozen[arm], *each) for each in FRESH[study] for arm in arms], options.jobs, "fresh")

    from benchmarks.side_by_side import feedback_report

    found = [
        row
        for row in kept(RUNS / "rows.jsonl")
        if row["study"] == study and row["arm"] in arms and row["cell"] == frozen[row["arm"]]
        if (row["start"], row["seed"]) in FRESH[study]
    ]
    found.sort(key=lambda row: (arms.index(row["arm"]), row["start"], row["seed"]))
    whole = set(arms) == set(known)
    print(feedback_report.written(study, found, STUDIES, frozen, HERE / "results" if whole else None))


if __name__ == "__main__":
    main()
