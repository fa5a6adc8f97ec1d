"""FO Maze of LMRL-Gym: cloned from its data, then by PPO; the normalised score of each over seeds.

    pip install -e '.[text]'
    python benchmarks/maze.py [--seeds 5] [--jobs 2]

Seeds 1000, 1001, … (the yamls were tuned on others) go through the command line: `conf/lmrl/maze_sft.yaml`, then
`conf/lmrl/maze_ppo.yaml` from it. A score is that of the mean return of 32 sampled episodes from each of the 25 starts,
between the paper's anchors: 0 the worst there is, 50 its data, 100 the shortest way. Finished runs are kept in
`outputs/benchmarks/maze` and not repeated. Writes `results/maze.{json,md}`.
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
YAMLS = ("maze_sft", "maze_ppo")


def run(seed: int) -> None:
    """Both yamls of one seed, and what their last policies score."""
    from benchmarks.side_by_side import rlhf_runs  # torch, in the process that needs it

    RUNS.mkdir(parents=True, exist_ok=True)
    os.chdir(RUNS)
    for name in YAMLS:
        row = Path(f"{name}-{seed}.json")
        if not row.is_file():
            folder = rlhf_runs.command("fit", name, seed, f"{name}-seed{seed}", {}, of="lmrl")
            figures = {"name": name, "seed": seed} | played(folder / "checkpoints" / "last.ckpt", seed)
            row.write_text(json.dumps(figures))


def played(checkpoint: Path, seed: int) -> dict[str, float]:
    """Mean return of sampled and of greedy episodes from all starts."""
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
    found = {}
    for name, greedy in (("sampled", False), ("greedy", True)):
        with torch.no_grad():
            batch = data.evaluate(agent, np.random.default_rng(seed), deterministic=greedy)
        assert batch.rewards is not None
        found[name] = float(episode_sums(row_sums(batch.rewards, batch.valid), batch).mean())
    return found


def written(rows: list[dict[str, Any]]) -> str:
    from benchmarks.intervals import mean_interval, shown
    from data_modules.lmrl import Maze

    lines = ["| yaml | score, sampled | mean return, sampled | score, greedy |", "| --- | --- | --- | --- |"]
    for name in YAMLS:
        own = [row for row in rows if row["name"] == name]
        scores = {how: mean_interval([Maze().anchors.score(row[how]) for row in own]) for how in ("sampled", "greedy")}
        returns = mean_interval([row["sampled"] for row in own])
        columns = [shown(scores["sampled"], 1), shown(returns, 1), shown(scores["greedy"], 1)]
        lines.append(f"| lmrl/{name} | {' | '.join(columns)} |")
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
    text = written(rows)
    print(text)
    (RESULTS / "maze.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "maze.md").write_text(text)


if __name__ == "__main__":
    main()
