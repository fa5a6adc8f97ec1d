"""Fully observed maze of LMRL-Gym: normalised scores of cloning its data, and of PPO from there, over seeds.

    pip install -e '.[text]'
    python benchmarks/maze.py [--seeds 5] [--jobs 2]

For each seed 1000, 1001, … (the yamls were tuned on others) the command line runs `conf/mazes/sft.yaml`, then
`conf/mazes/ppo.yaml` from its weights. A score maps the mean return of 32 sampled episodes from each of the 25 starts
to the paper's anchors: 0 is the worst possible return, 50 the return of the data, 100 the shortest path. Finished runs
are kept in `outputs/benchmarks/maze` and not repeated. Writes `results/maze.{json,md}`.
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

from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
RUNS = Path("outputs/benchmarks/maze")
YAMLS = ("mazes/sft", "mazes/ppo")


def run(seed: int) -> None:
    """Run both yamls on one seed, and evaluate their last policies."""
    from benchmarks.side_by_side import rlhf_runs  # imports torch only in the process that needs it

    RUNS.mkdir(parents=True, exist_ok=True)
    os.chdir(RUNS)
    for name in YAMLS:
        row = Path(f"{name}-{seed}.json")
        if not row.is_file():
            folder = rlhf_runs.command("fit", name, seed, f"{name}-seed{seed}", {})
            figures = {"name": name, "seed": seed} | evaluate_policy(folder / "checkpoints" / "last.ckpt", seed)
            row.parent.mkdir(exist_ok=True)
            row.write_text(json.dumps(figures))


def evaluate_policy(checkpoint: Path, seed: int) -> dict[str, float]:
    """Mean return of sampled and of greedy episodes over all starts."""
    from types import SimpleNamespace

    import numpy as np
    import torch

    from data_modules.lmrl import Maze
    from data_modules.text import TextDataModule, WordTokenizer
    from lightning_nlf.maths.steps import episode_sums, row_sums
    from lightning_nlf.modules import PolicyModule

    agent = PolicyModule.load_from_checkpoint(checkpoint).eval()
    shared: dict[str, Any] = {"max_new": 3, "window": 1, "evaluation_prompts": None, "seed": seed}
    data = TextDataModule(Maze(), tokenizer=WordTokenizer(), evaluation_replies=32, **shared)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, testing=True)  # type: ignore[assignment]
    data.setup("test")
    returns = {}
    for name, greedy in (("sampled", False), ("greedy", True)):
        with torch.no_grad():
            batch = data.evaluate(agent, np.random.default_rng(seed), deterministic=greedy)
        assert batch.rewards is not None
        returns[name] = float(episode_sums(row_sums(batch.rewards, batch.valid), batch).mean())
    return returns


def report_text(rows: list[dict[str, Any]]) -> str:
    from data_modules.lmrl import Maze
    from lightning_nlf.studies.statistics import interval_text, mean_interval

    lines = ["| yaml | score, sampled | mean return, sampled | score, greedy |", "| --- | --- | --- | --- |"]
    for name in YAMLS:
        runs = [row for row in rows if row["name"] == name]
        scores = {how: mean_interval([Maze().anchors.score(row[how]) for row in runs]) for how in ("sampled", "greedy")}
        returns = mean_interval([row["sampled"] for row in runs])
        columns = [interval_text(scores["sampled"], 1), interval_text(returns, 1), interval_text(scores["greedy"], 1)]
        lines.append(f"| {name} | {' | '.join(columns)} |")
    seeds = len({row["seed"] for row in rows})
    note = (
        f"Mean and 95 % t interval over {seeds} seeds (1000–{999 + seeds}); 0 is the worst there is, 50 the "
        f"paper's data, 100 the shortest way. {os.cpu_count()} cores; `python benchmarks/maze.py`."
    )
    return "\n".join(lines) + f"\n\n{note}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    seeds = range(1000, 1000 + options.seeds)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(run, seed) for seed in seeds]
        for future in tqdm(as_completed(futures), desc="seeds", total=len(futures)):
            future.result()
    rows = [json.loads((RUNS / f"{name}-{seed}.json").read_text()) for seed in seeds for name in YAMLS]
    text = report_text(rows)
    print(text)
    (RESULTS / "maze.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "maze.md").write_text(text)


if __name__ == "__main__":
    main()
