"""Start-up times of commands in seconds. Each function is called repeatedly in a pinned process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "lightning_nlf")
FIT = (*COMMAND, "fit", "--config", "conf/injection.yaml")
FIRST_ITERATION = ("--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1")
PEER = """
import stable_baselines3
from stable_baselines3.common.callbacks import BaseCallback
class Collected(BaseCallback):
    def _on_step(self): return True
    def _on_rollout_end(self): raise SystemExit
stable_baselines3.PPO("MlpPolicy", "InvertedPendulum-v5", device="cpu").learn(2048, callback=Collected())
"""


def wall(command: tuple[str, ...]) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return time.monotonic() - started


cached = cache(wall)  # runs a command once to fill the file cache


def help_shown(repeat: int, words: list[str]) -> dict[str, float]:
    cached((*COMMAND, *words))
    return {"value": wall((*COMMAND, *words))}


def main_job(repeat: int) -> dict[str, float]:
    """Seconds of the complete main job, including pictures and checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        return {"value": wall((*FIT, "--run_dir", f"{folder}/run"))}


def first_training_step(repeat: int) -> dict[str, float]:
    """Seconds of the main job until the metrics of its first training step are in the journal."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        subprocess.run(
            (*FIT, *FIRST_ITERATION, "--run_dir", f"{folder}/run"), check=True, capture_output=True, cwd=ROOT
        )
        for line in Path(folder, "run", "journal.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["kind"] == "metrics" and "train/loss" in record["values"]:
                return {"value": record["time"] / 1000 - started}
    raise RuntimeError("the run logged no training step")


def peer_collected(repeat: int) -> dict[str, float]:
    """Seconds of stable-baselines3 PPO until its first training step: import, construction, rollout of 2048 steps."""
    command = (sys.executable, "-c", PEER)
    cached(command)
    return {"value": wall(command)}
