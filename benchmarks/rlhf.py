"""RLHF and its alternatives at equal budget: true reward and KL of each, from the same start, replies and model.

    pip install -e '.[text]'
    python benchmarks/rlhf.py                       # everything: tuning, then ten fresh seeds
    python benchmarks/rlhf.py --only dpo ppo        # these methods again

For every seed a model is fine-tuned (`conf/rlhf/sft.yaml`), samples four replies to each training prompt, the task's
rule scores and ranks them with ties, and a reward model learns from the rankings. Then each method of `rlhf.yaml`
trains through its own yaml, by the command line, for as many optimizer steps and on as many sampled replies as the
others. Learning rates, and the weight of the leash where there is one, are chosen by true reward: every cell of a grid
runs on seeds 0–2, the three best also on seeds 3–6, and all seven choose. The figures are of seeds 1000–1009. True
reward: the rule, of four sampled replies to each held-out prompt; KL: of whole replies, from the start, on those
samples. Gains are paired by seed, with 95 % t intervals.

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
FINALISTS = 3  # cells of a method
Jobs = list[tuple[str, dict[str, Any]]]  # method and cell


def kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def seed_of(seed: int, jobs: Jobs) -> None:
    """All that is to be run on one seed, after one start: the rows of (method, cell), in a process of its own."""
    from benchmarks.side_by_side import rlhf_runs  # torch, in the process that needs it

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


def run_all(run_seed: Callable[[int, Jobs], None], runs: Path, wanted: dict[int, Jobs], jobs: int, what: str) -> None:
    """The rows of every seed, each seed in a process of its own; those that `runs` keeps not again."""
    done = {(row["method"], row["seed"], json.dumps(row["cell"])) for row in kept(runs / "rows.jsonl")}
    todo = {
        seed: [(name, cell) for name, cell in own if (name, seed, json.dumps(cell)) not in done]
        for seed, own in wanted.items()
    }
    todo = {seed: own for seed, own in todo.items() if own}
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(run_seed, seed, own) for seed, own in todo.items()]
        for future in tqdm(as_completed(futures), desc=f"{what}, seeds", total=len(futures)):
            future.result()


def ordered_cells(name: str, of: list[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Cells of a method by their mean true reward on these seeds, the highest first."""
    rows = [row for row in kept(RUNS / "rows.jsonl") if row["method"] == name and row["seed"] in seeds]

    def reward(cell: dict[str, Any]) -> float:
        own = [row["true_reward"] for row in rows if row["cell"] == cell]
        return sum(own) / len(own)

    return sorted(of, key=reward, reverse=True)


def tuned(names: list[str], jobs: int) -> dict[str, dict[str, Any]]:
    """The best cell of each method."""
    grids = {seed: [(name, cell) for name in names for cell in grid(name)] for seed in TUNING}
    run_all(seed_of, RUNS, grids, jobs, "tuning")
    finals = {name: ordered_cells(name, grid(name), TUNING)[:FINALISTS] for name in names}
    again = {seed: [(name, cell) for name, own in finals.items() for cell in own if len(own) > 1] for seed in FINALS}
    run_all(seed_of, RUNS, again, jobs, "finals")
    return {name: ordered_cells(name, own, [*TUNING, *FINALS])[0] for name, own in finals.items()}


def found(names: list[str], frozen: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in kept(RUNS / "rows.jsonl"):
        if row["method"] in names and row["seed"] in FRESH and row["cell"] == frozen[row["method"]]:
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS['methods'])}")
    parser.add_argument("--tune", action="store_true", help="choose the cells again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    # gains are paired with the start
    names = list(dict.fromkeys(["start", *options.only])) if options.only else list(METHODS["methods"])
    if unknown := set(names) - set(METHODS["methods"]):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(METHODS['methods'])}")
    frozen = json.loads(FROZEN.read_text()) if FROZEN.is_file() else {}
    to_tune = [name for name in names if options.tune or name not in frozen]
    frozen |= tuned(to_tune, options.jobs)
    FROZEN.write_text(json.dumps(frozen, indent=1) + "\n")
    run_all(seed_of, RUNS, {seed: [(name, frozen[name]) for name in names] for seed in FRESH}, options.jobs, "fresh")

    from benchmarks.side_by_side import rlhf_report

    whole = set(names) == set(METHODS["methods"])
    print(rlhf_report.written(list(found(names, frozen)), METHODS, frozen, HERE / "results" if whole else None))


if __name__ == "__main__":
    main()
