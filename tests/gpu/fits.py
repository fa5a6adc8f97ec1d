"""DPO and PPO of a chat model by the command line, with tokens/s and peak memory. Used by `one_gpu.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from data_modules.text.environment import Case
from data_modules.text.episode import Episode
from lightning_nlf.callbacks import HuggingFaceExport
from lightning_nlf.callbacks.throughput import Throughput
from tests.my_folder import my_folder

ROOT = Path(__file__).parents[2]
TOKENIZER = {"class_path": "data_modules.text.FolderTokenizer", "init_args": {"path": "my/model"}}
ROWS = 8  # read at a time, so that 1B parameters fit into 48 GB
EPOCHS = 6  # the first one, with memory and algorithms being set up, does not count


class Meter(L.Callback):
    """Writes tokens/s of each iteration after the first, and the peak memory of the GPU in bytes."""

    def __init__(self, path: str) -> None:
        self.path, self.iterations, self.steps = path, [], 0
        self.clock = Throughput()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock = Throughput()
        self.clock.iteration_begins(self._collected(trainer))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.clock.collection_ends(self._collected(trainer))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.clock.batch_ends(batch, 1)
        self.steps += 1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.iterations.append(self.clock.speeds())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        names = {"collected": "sampling", "trained": "training"}
        speeds = {names[kind]: [x[kind] for x in self.iterations[1:]] for kind in self.iterations[-1]}
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        figures = {"tokens_per_second": speeds, "peak_bytes": dict.fromkeys(speeds, peak)}
        figures |= {"precision": str(trainer.precision), "optimizer_steps": self.steps}
        Path(self.path).write_text(json.dumps(figures))

    def _collected(self, trainer: Any) -> int:
        return trainer.datamodule.counters.get("env_steps", 0)


class Unexported(HuggingFaceExport):
    """In place of the export, which would write gigabytes at the end of a fit."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pass


class Vowels:
    """`ReplyJudge`: the share of vowels, so that PPO needs no reward model."""

    def check(self, cases: Sequence[Case]) -> None:
        pass

    def judge(self, episodes: Sequence[Episode]) -> list[float]:
        texts = ["".join(turn.text for turn in episode.turns) for episode in episodes]
        return [sum(x in "aeiou" for x in text) / max(len(text), 1) for text in texts]


def write_files(folder: Path, weights: str | None, words: int) -> None:
    """Write `my/` with prompts and pairs of about `words` words, and `weights` as the model, if given."""
    my = my_folder(folder)
    if weights is not None:
        (my / "model").rename(my / "unused")
        (my / "model").symlink_to(Path(weights).resolve())
    lines = []
    for i in range(40 if words < 20 else 320):
        chosen, rejected = (" ".join(f"{word}{(i * k) % 97}" for k in range(words // 4)) for word in ("rain", "sun"))
        question = f"Question {i}: " + "what is the weather in town " * (words // 6) + "?"
        lines.append({"prompt": question, "responses": [chosen, rejected], "ranking": "A > B"})
    (my / "feedback.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (my / "prompts.jsonl").write_text("".join(json.dumps({"prompt": line["prompt"]}) + "\n" for line in lines))


def fit(objective: str, lora: bool, weights: str | None, shape: dict[str, Any], cpu: bool) -> dict[str, Any]:
    """Fit conf/chat/{dpo,ppo}.yaml, and return what `Meter` wrote.

    Args: lora: keep the adapter of the yaml; weights: folder of the model; shape: of a random model without `weights`.
    Raises:
        SystemExit: the fit failed; the message is its output.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, weights, 12 if cpu else 256 if weights else 64)  # without weights, a token is a byte
        callbacks = [
            {"class_path": "tests.gpu.fits.Meter", "init_args": {"path": str(folder / "figures.json")}},
            {"class_path": "tests.gpu.fits.Unexported"},
        ]
        quiet = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0, "callbacks": callbacks}
        device = {"accelerator": "cpu" if cpu else "gpu", "precision": "bf16-mixed", "max_epochs": EPOCHS}
        (folder / "gpu.yaml").write_text(json.dumps({"trainer": quiet | device}))  # JSON is YAML
        words = [] if lora else ["--model.policy.lora", "null"]
        if weights is None:
            words += ["--model.policy.weights", "null", "--model.policy.shape", json.dumps(shape)]
            words += ["--data.tokenizer", json.dumps(TOKENIZER)]
        prompts, new = ("2", "8") if cpu else ("32", "128")
        sampling = ["--data.prompts", prompts, "--data.max_new", new]
        data = {"dpo": [], "ppo": ["--data.reward", "tests.gpu.fits.Vowels", *sampling]}
        words += ["--data.rows_per_batch", str(ROWS), "--data.minibatches", "1" if cpu else "4"]
        yaml = ROOT / "conf" / "chat" / f"{objective}.yaml"
        command = [sys.executable, "-m", "lightning_nlf", "fit", "--config", str(yaml), "--config", "gpu.yaml"]
        process = subprocess.run(
            [*command, *data[objective], *words, "--run_dir", "run"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if process.returncode:
            sys.exit(process.stdout)
        figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
        return figures
