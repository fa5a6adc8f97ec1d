"""RLHF and its alternatives at equal budget: true reward and KL, from the same start, replies and reward model.

    pip install -e '.[text]'
    python benchmarks/rlhf.py                       # everything: tuning, then ten fresh seeds
    python benchmarks/rlhf.py --only dpo ppo        # only these methods

For every seed a model is fine-tuned (`conf/reviews/sft.yaml`) and samples four replies to each training prompt. The
task's rule scores and ranks the replies with ties, and a reward model learns from the rankings. Each method in
`rlhf.yaml` then trains with its own yaml on the command line, with equal numbers of optimizer steps and sampled
replies. Learning rates and KL weights are chosen by true reward: every cell of a grid runs on seeds 0–2, the three best
cells also on seeds 3–6, and the mean over all seven seeds decides. The figures are from seeds 1000–1009. The true
reward is the rule's, over four sampled replies to each held-out prompt. KL is the divergence of complete replies from
the start, on the same samples. Gains are paired by seed, with 95 % t intervals.

Finished runs are kept in `outputs/benchmarks/rlhf` and not repeated. Writes `results/rlhf.{json,md}`, `rlhf.png` and
`rlhf_overoptimization.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml
from tqdm import tqdm

from benchmarks.study.tuning import cells

HERE = Path(__file__).parent
METHODS: dict[str, Any] = yaml.safe_load((HERE / "rlhf.yaml").read_text())
RUNS = Path("outputs/benchmarks/rlhf")
FROZEN = HERE / "results" / "rlhf_cells.json"
TUNING, FINALS, FRESH = range(3), range(3, 7), range(1000, 1010)
FINALISTS = 3  # cells per method
Jobs = list[tuple[str, dict[str, Any]]]  # method and cell


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def seed_of(seed: int, jobs: Jobs) -> None:
    """Run all jobs (method, cell) of one seed from a shared start, in a process of its own."""
    from benchmarks.side_by_side import rlhf_runs  # imports torch only in the process that needs it

    folder = RUNS.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    rlhf_runs.start(seed)
    for name, cell in jobs:
        row = {"method": name, "seed": seed, "cell": cell}
        row |= rlhf_runs.run(name, METHODS["methods"][name], cell, seed)
        with (folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def grid(name: str) -> list[dict[str, Any]]:
    return cells(METHODS["methods"][name].get("grid", {}))


def run_all(
    run_seed: Callable[[int, Jobs], None], runs: Path, jobs_by_seed: dict[int, Jobs], jobs: int, stage: str
) -> None:
    """Run the jobs of all seeds, each seed in a process of its own, except those with a row in `runs` already."""
    finished = {(row["method"], row["seed"], json.dumps(row["cell"])) for row in read_rows(runs / "rows.jsonl")}
    todo = {
        seed: [(name, cell) for name, cell in seed_jobs if (name, seed, json.dumps(cell)) not in finished]
        for seed, seed_jobs in jobs_by_seed.items()
    }
    todo = {seed: seed_jobs for seed, seed_jobs in todo.items() if seed_jobs}
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(run_seed, seed, seed_jobs) for seed, seed_jobs in todo.items()]
        for future in tqdm(as_completed(futures), desc=f"{stage}, seeds", total=len(futures)):
            future.result()


def ordered_cells(name: str, of: list[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Cells of a method, sorted by mean true reward on these seeds, highest first."""
    rows = [row for row in read_rows(RUNS / "rows.jsonl") if row["method"] == name and row["seed"] in seeds]

    def reward(cell: dict[str, Any]) -> float:
        rewards = [row["true_reward"] for row in rows if row["cell"] == cell]
        return sum(rewards) / len(rewards)

    return sorted(of, key=reward, reverse=True)


def tuned(names: list[str], jobs: int) -> dict[str, dict[str, Any]]:
    """Best cell of each method."""
    grids = {seed: [(name, cell) for name in names for cell in grid(name)] for seed in TUNING}
    run_all(seed_of, RUNS, grids, jobs, "tuning")
    finals = {name: ordered_cells(name, grid(name), TUNING)[:FINALISTS] for name in names}
    again = {seed: [(name, cell) for name, best in finals.items() for cell in best if len(best) > 1] for seed in FINALS}
    run_all(seed_of, RUNS, again, jobs, "finals")
    return {name: ordered_cells(name, best, [*TUNING, *FINALS])[0] for name, best in finals.items()}


def fresh_rows(names: list[str], frozen: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in read_rows(RUNS / "rows.jsonl"):
        if row["method"] in names and row["seed"] in FRESH and row["cell"] == frozen[row["method"]]:
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="METHOD", help=f"one or more of {', '.join(METHODS['methods'])}")
    parser.add_argument("--tune", action="store_true", help="choose the cells again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    # gains are paired with the start
    names = list(dict.fromkeys(["start", *options.only])) if options.only else list(METHODS["methods"])
    if unknown := set(names) - set(METHODS["methods"]):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; choose from {', '.join(METHODS['methods'])}")
    frozen = json.loads(FROZEN.read_text()) if FROZEN.is_file() else {}
    to_tune = [name for name in names if options.tune or name not in frozen]
    frozen |= tuned(to_tune, options.jobs)
    FROZEN.write_text(json.dumps(frozen, indent=1) + "\n")
    run_all(seed_of, RUNS, {seed: [(name, frozen[name]) for name in names] for seed in FRESH}, options.jobs, "fresh")

    from benchmarks.side_by_side import rlhf_report

    whole = set(names) == set(METHODS["methods"])
    print(
        rlhf_report.report_text(list(fresh_rows(names, frozen)), METHODS, frozen, HERE / "results" if whole else None)
    )


if __name__ == "__main__":
    main()
