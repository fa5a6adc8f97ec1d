"""How quick it feels: start-up, the main job, and environment steps a second of collecting and updating together.

    python benchmarks/speed.py

Medians of 5, of whole processes for the command line. A row of steps/s trains REINFORCE on 256 episodes at a time
through the Trainer, after the policy has learned to stay up; evaluation is off. Writes `results/speed.{json,md}`.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is there

RESULTS = Path(__file__).parent / "results"
COMMAND = [sys.executable, "-m", "lightning_nlf"]
FIT = [*COMMAND, "fit", "--config", "conf/injection.yaml", "--run_dir"]


def wall(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def first_step_and_whole() -> tuple[float, float]:
    """Seconds from the command to the first optimizer step's metrics in the journal, and to its end."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        whole = wall([*FIT, f"{folder}/run", "--trainer.log_every_n_steps", "1"])
        for line in Path(folder, "run", "journal.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["kind"] == "metrics" and "train/loss" in record["values"]:
                return record["time"] / 1000 - started, whole
    raise RuntimeError("the run logged no training step")


def steps_per_second(threads: int) -> list[float]:
    """Five measurements of 4 iterations each, in this process."""
    import lightning as L
    import torch

    from data_modules.pendulum import PendulumDataModule
    from data_modules.pendulum.experts import LQRExpert
    from data_modules.takeover import Always
    from lightning_nlf.networks import GaussianPolicy
    from lightning_nlf.objectives import ImitationPolicy, ReinforcePolicy

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def fitted(module: L.LightningModule, data: PendulumDataModule, epochs: int) -> float:
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=epochs, limit_val_batches=0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        )  # fmt: skip
        started = time.monotonic()
        trainer.fit(module, data)
        return data.counters["env_steps"] / (time.monotonic() - started)

    policy = GaussianPolicy(4, 1)
    clone = ImitationPolicy(policy=policy, optimizer=lambda groups: torch.optim.Adam(groups, lr=0.01))
    fitted(clone, PendulumDataModule(episodes=8, passes=50, expert=LQRExpert(), takeover=Always()), 5)
    learner = ReinforcePolicy(policy=policy, optimizer=lambda groups: torch.optim.Adam(groups, lr=1e-4))
    return [fitted(learner, PendulumDataModule(episodes=256, seed=seed, threads=threads), 4) for seed in range(5)]


def main() -> None:
    rows: dict[str, list[float]] = {}
    for name, words in {"`--help`": ["--help"], "`fit --help`": ["fit", "--help"]}.items():
        wall([*COMMAND, *words])  # the cache
        rows[f"{name}, seconds"] = [wall([*COMMAND, *words]) for _ in range(5)]
    pairs = [first_step_and_whole() for _ in range(5)]
    rows["main job, seconds to the first training step"] = [first for first, _ in pairs]
    rows["main job, seconds in all"] = [whole for _, whole in pairs]
    for threads in (1, 2):
        rows[f"environment steps/s, collect + update, {threads} thread{'s' * (threads > 1)}"] = steps_per_second(
            threads
        )
    machine = f"{os.cpu_count()} cores of {platform.machine()}"
    lines = ["| what | median | least | most |", "| --- | --- | --- | --- |"]
    for name, values in rows.items():
        shown = [f"{x:,.0f}" if x > 1000 else f"{x:.1f}" for x in (statistics.median(values), min(values), max(values))]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    text = "\n".join(lines) + f"\n\nMedian of 5 on {machine}; `python benchmarks/speed.py`.\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    (RESULTS / "speed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
