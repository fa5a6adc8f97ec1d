"""Does a teacher's language feedback help a language model? Two studies on sourced answers, each with its own yamls.

    pip install -e '.[text]'
    python benchmarks/feedback.py convergence                   # joint and injection against policy gradient
    python benchmarks/feedback.py comparison                    # all critique methods at equal budgets
    python benchmarks/feedback.py comparison --only ilf sdpo    # only these arms

`convergence` counts sampled tokens and feedback calls until the mean reward of 192 validation prompts reaches .9 with
greedy replies, or .85 with sampled ones, in two consecutive validations; five starts with three seeds each, paired.
`comparison` measures the reward on 512 held-out prompts, greedy and sampled, when each of three budgets is spent:
tokens, optimizer steps, feedback calls; five starts with two seeds each. The cell of each arm's grid is chosen on one
start and two seeds that are used for nothing else. Gains and ratios are paired with those of policy gradient, with 95 %
t intervals over starts.

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

from benchmarks.rlhf import read_rows
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
    """One run in a process of its own; its row is appended to the file."""
    from benchmarks.side_by_side import feedback_runs  # imports torch only in the process that needs it

    folder = RUNS.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    method = {"budgets": STUDIES[study]["budgets"]} | STUDIES[study]["arms"][arm]
    row = {"study": study, "arm": arm, "cell": cell, "start": start, "seed": seed}
    row |= feedback_runs.run(arm, method, cell, start, seed, testing=(start, seed) not in TUNING)
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def begin(start: int) -> None:
    """Prepare a start for its runs, in a process of its own."""
    from benchmarks.side_by_side import feedback_runs

    RUNS.mkdir(parents=True, exist_ok=True)
    os.chdir(RUNS)
    feedback_runs.start(start, STUDIES["pools"])


def grid(study: str, arm: str) -> list[dict[str, Any]]:
    return cells(STUDIES[study]["arms"][arm].get("grid", {}))


def key(row: dict[str, Any]) -> str:
    return json.dumps([row["study"], row["arm"], row["cell"], row["start"], row["seed"]])


def run_all(jobs: list[Job], processes: int, stage: str) -> None:
    """Run the jobs that have no row yet, after their starts."""
    finished = {key(row) for row in read_rows(RUNS / "rows.jsonl")}
    todo = [
        entry
        for entry in jobs
        if key(dict(zip(("study", "arm", "cell", "start", "seed"), entry, strict=True))) not in finished
    ]
    context = get_context("forkserver")  # a process per run, forked from one with the slow imports done
    context.set_forkserver_preload(["benchmarks.side_by_side.feedback_runs"])
    with ProcessPoolExecutor(processes, context, max_tasks_per_child=1) as pool:
        starts = [pool.submit(begin, start) for start in sorted({entry[3] for entry in todo})]
        for future in tqdm(as_completed(starts), desc="starts", total=len(starts)):
            future.result()
        futures = [pool.submit(job, *entry) for entry in todo]
        for future in tqdm(as_completed(futures), desc=f"{stage}, runs", total=len(futures)):
            future.result()


def chosen(study: str, arms: list[str]) -> dict[str, dict[str, Any]]:
    """Cell of each arm with the highest mean sampled reward over the last three validations."""
    from benchmarks.side_by_side.feedback_figures import ending

    rows = [
        row for row in read_rows(RUNS / "rows.jsonl") if row["study"] == study and (row["start"], row["seed"]) in TUNING
    ]

    def earned(arm: str, cell: dict[str, Any]) -> float:
        endings = [ending(row) for row in rows if row["arm"] == arm and row["cell"] == cell]
        return sum(endings) / len(endings)

    return {arm: max(grid(study, arm), key=lambda cell, arm=arm: earned(arm, cell)) for arm in arms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=FRESH)
    parser.add_argument("--only", nargs="*", metavar="ARM", help="run only these arms, with the chosen cells")
    parser.add_argument("--tune", action="store_true", help="choose the cells again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    study, known_arms = options.study, STUDIES[options.study]["arms"]
    # ratios and gains are paired with these
    arms = list(dict.fromkeys([*STUDIES[study]["paired"], *options.only])) if options.only else list(known_arms)
    if unknown := set(arms) - set(known_arms):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; choose from {', '.join(known_arms)}")
    file = HERE / "results" / f"feedback_{study}_cells.json"
    frozen = json.loads(file.read_text()) if file.is_file() else {}
    to_tune = [arm for arm in arms if options.tune or arm not in frozen]
    tuned = [arm for arm in to_tune if len(grid(study, arm)) > 1]
    trials = [(study, arm, cell, *pair) for arm in tuned for cell in grid(study, arm) for pair in TUNING]
    print(f"{len(trials)} runs to tune and {len(arms) * len(FRESH[study])} fresh ones", flush=True)
    run_all(trials, options.jobs, "tuning")
    frozen |= {arm: grid(study, arm)[0] for arm in to_tune} | chosen(study, tuned)
    file.write_text(json.dumps(frozen, indent=1) + "\n")
    run_all([(study, arm, frozen[arm], *pair) for pair in FRESH[study] for arm in arms], options.jobs, "fresh")

    from benchmarks.side_by_side import feedback_report

    rows = [
        row
        for row in read_rows(RUNS / "rows.jsonl")
        if row["study"] == study and row["arm"] in arms and row["cell"] == frozen[row["arm"]]
        if (row["start"], row["seed"]) in FRESH[study]
    ]
    rows.sort(key=lambda row: (arms.index(row["arm"]), row["start"], row["seed"]))
    whole = set(arms) == set(known_arms)
    print(feedback_report.report_text(study, rows, STUDIES, frozen, HERE / "results" if whole else None))


if __name__ == "__main__":
    main()
