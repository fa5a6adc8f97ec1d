"""Process and outcome reward models compared as judges, for best-of-n sampling, and as rewards of PPO.

    pip install -e '.[text]'
    python benchmarks/process.py                       # everything: tuning, then five fresh seeds
    python benchmarks/process.py --only ppo_outcome    # only this row

For every seed a model is fine-tuned on sums with worked steps (`conf/sums/sft.yaml`) and samples four replies to each
of 1,600 training sums. From these replies, with the same network, loss and number of optimizer steps, a process reward
model learns the label of every step, and an outcome reward model learns whether the answer is right. Both judge 16
replies to each of 300 held-out sums. PPO is then trained with either reward model, with the yamls in `conf/sums` and
equal numbers of replies and optimizer steps. The KL weight of each PPO is chosen by true reward on seed 0; the figures
are from seeds 1000–1004. Every seed has its own sums. Gains are paired by seed, with 95 % t intervals.

Finished runs are kept in `outputs/benchmarks/process` and not repeated. Writes `results/process.{json,md,png}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rlhf import Jobs, read_rows, run_all
from benchmarks.study.tuning import cells

HERE = Path(__file__).parent
RUNS = Path("outputs/benchmarks/process")
FROZEN = HERE / "results" / "process_cells.json"
TUNING, FRESH = range(1), range(1000, 1005)
LEASH = {"model.beta": [0.03, 0.1, 0.3]}
METHODS: dict[str, dict[str, Any]] = {
    "judges": {},
    "start": {},
    "ppo_steps": {"yaml": "sums/ppo_steps", "grid": LEASH},
    "ppo_product": {"yaml": "sums/ppo_steps", "grid": LEASH, "changes": {"data.reward.init_args.aggregate": "product"}},
    "ppo_outcome": {"yaml": "sums/ppo_outcome", "grid": LEASH},
}


def seed_of(seed: int, jobs: Jobs) -> None:
    """Run all jobs of one seed from a shared start, in a process of its own."""
    from benchmarks.side_by_side import process_runs  # imports torch only in the process that needs it

    folder = RUNS.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    process_runs.start(seed)
    for name, cell in jobs:
        row = {"method": name, "seed": seed, "cell": cell} | process_runs.run(name, METHODS[name], cell, seed)
        with (folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def grid(name: str) -> list[dict[str, Any]]:
    return cells(METHODS[name].get("grid", {}))


def best_cells(names: list[str]) -> dict[str, dict[str, Any]]:
    """Cell of each method with the highest mean true reward on the tuning seeds."""
    rows = [row for row in read_rows(RUNS / "rows.jsonl") if row["seed"] in TUNING]

    def reward(name: str, cell: dict[str, Any]) -> float:
        return sum(row["true_reward"] for row in rows if row["method"] == name and row["cell"] == cell)

    return {name: max(grid(name), key=lambda cell, name=name: reward(name, cell)) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=METHODS, metavar="ROW", help=f"one or more of {', '.join(METHODS)}"
    )
    parser.add_argument("--tune", action="store_true", help="choose the KL weights again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    names = options.only or list(METHODS)
    frozen = json.loads(FROZEN.read_text()) if FROZEN.is_file() else {}
    to_tune = [name for name in names if "grid" in METHODS[name] and (options.tune or name not in frozen)]
    grids = {seed: [(name, cell) for name in to_tune for cell in grid(name)] for seed in TUNING}
    run_all(seed_of, RUNS, grids, options.jobs, "tuning")
    frozen |= best_cells(to_tune)
    FROZEN.write_text(json.dumps(frozen, indent=1) + "\n")
    fresh = {seed: [(name, frozen.get(name, {})) for name in names] for seed in FRESH}
    run_all(seed_of, RUNS, fresh, options.jobs, "fresh")

    from benchmarks.side_by_side import process_report

    rows = [
        row
        for row in read_rows(RUNS / "rows.jsonl")
        if row["seed"] in FRESH and row["method"] in names and row["cell"] == frozen.get(row["method"], {})
    ]
    whole = set(names) == set(METHODS)
    print(process_report.report_text(rows, frozen, HERE / "results" if whole else None))


if __name__ == "__main__":
    main()
