"""Runs of `rlhf.py`: the shared start of a seed, and a method's training and evaluation by true reward and KL."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import torch

from benchmarks.study.learner import CONF
from data_modules.feedback.__main__ import main as rank
from data_modules.text import PositiveReviews, TextDataModule, WordTokenizer
from data_modules.text.rows import as_rows
from lightning_nlf.batch import Batch
from lightning_nlf.cli import noise
from lightning_nlf.cli.command_line import main as command_line
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.moved_yamls import arguments
from lightning_nlf.objective import scattered

noise.silence()
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)

MAX_NEW, CONTEXT = 26, 48


def command(stage: str, name: str, seed: int, run_dir: str, changes: dict[str, Any]) -> Path:
    """Run `python -m lightning_nlf stage --config conf/name.yaml …` in this process; returns the run folder.

    The flags of a variant name runs of seed 0; here they are of the same seed.
    """
    folder = Path("outputs") / run_dir
    words = [stage, *(word.replace("-seed0/", f"-seed{seed}/") for word in arguments(CONF, name))]
    words += ["--seed_everything", str(seed)]
    words += ["--run_dir", str(folder), "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    for key, value in changes.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        command_line(words)
    return folder


def start(seed: int) -> None:
    """Prepare a seed: fine-tuned model, ranked replies, reward model."""
    played_round(seed, ("fit", "reviews/sft"), ("predict", "reviews/sample"), ("fit", "reviews/reward"))


def played_round(seed: int, *steps: tuple[str, str]) -> None:
    """Run yamls in sequence, each in a run folder of `outputs`, and rank predicted replies. Finished ones are kept."""
    for stage, name in steps:
        folder = Path(f"outputs/{name}-seed{seed}")
        if (finished := folder / "finished").is_file():
            continue
        shutil.rmtree(folder, ignore_errors=True)  # remains of an interrupted run
        command(stage, name, seed, f"{name}-seed{seed}", {})
        if stage == "predict":
            replies, ranked = folder / "predictions" / "replies.jsonl", folder / "rankings.jsonl"
            with redirect_stdout(io.StringIO()):
                rank(["rank", str(replies), "--by", "score", "--ties", "0.02", "--out", str(ranked)])
        finished.touch()


def run(name: str, method: dict[str, Any], cell: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train a method, then evaluate its last weights on the held-out prompts."""
    start_of = Path(f"outputs/reviews/sft-seed{seed}/checkpoints/best.ckpt")
    if "yaml" not in method:  # the start itself
        return evaluate_policy(start_of, start_of, "", seed) | {"reward_model": measured_reward(seed)}
    if method.get("second_round"):
        played_round(
            seed, ("fit", "reviews/ppo"), ("predict", "reviews/second_sample"), ("fit", "reviews/second_reward")
        )
    # log every step, so that the metrics read after a collection belong to that collection
    changes = {"trainer.callbacks+": f"{__name__}.Course", "trainer.log_every_n_steps": 1}
    run_dir = f"method-{os.getpid()}/{name}"
    folder = command("fit", method["yaml"], seed, run_dir, method.get("changes", {}) | cell | changes)
    last = folder / "checkpoints" / "last.ckpt"
    figures = evaluate_policy(last, start_of, method.get("suffix", ""), seed) | spent(last, seed)
    course = json.loads((folder / "course.json").read_text())
    shutil.rmtree(folder)
    return figures | {"course": course}


def spent(checkpoint: Path, seed: int) -> dict[str, int]:
    """Optimizer steps and sampled training tokens; for a method that samples nothing, the tokens of the file."""
    saved_state = torch.load(checkpoint, weights_only=True)
    counters = next(
        saved_state[name]["counters"] for name in ("TextDataModule", "FeedbackDataModule") if name in saved_state
    )
    if "env_steps" in counters:  # includes rejected replies
        return {"optimizer_steps": saved_state["global_step"], "sampled_tokens": counters["env_steps"]}
    lines = Path(f"outputs/reviews/sample-seed{seed}/rankings.jsonl").read_text().splitlines()
    tokens = sum(len(reply) for line in lines for reply in json.loads(line)["meta"]["tokens"])
    return {"optimizer_steps": saved_state["global_step"], "sampled_tokens": tokens}


def measured_reward(seed: int) -> dict[str, float]:
    """Metrics of the reward model on held-out rankings, by name."""
    changes = {"trainer.callbacks+": f"{__name__}.Measures", "ckpt_path": "best"}
    folder = command("validate", "reviews/reward", seed, f"reviews/reward-seed{seed}", changes)
    return json.loads((folder / "measures.json").read_text())


@torch.no_grad()
def evaluate_policy(checkpoint: Path, start_of: Path, suffix: str, seed: int) -> dict[str, Any]:
    """Mean true reward, KL from the start and length of sampled replies to the test prompts."""
    agent, reference = (PolicyModule.load_from_checkpoint(path).eval() for path in (checkpoint, start_of))
    data = TextDataModule(
        PositiveReviews(),
        tokenizer=WordTokenizer(),
        max_new=MAX_NEW,
        context=CONTEXT,
        evaluation_prompts=None,
        evaluation_replies=4,
        prompt_suffix=suffix,
        seed=seed,
    )
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, testing=True)  # type: ignore[assignment]
    data.setup("test")
    torch.manual_seed(seed)
    batch = data.evaluate(agent, np.random.default_rng(seed), deterministic=False)
    assert batch.rewards is not None
    bare = without(batch, len(data.tokenizer.encode(suffix)))  # the start does not know control codes
    kl = log_prob(agent, batch) - log_prob(reference, bare)
    earned = row_sums(batch.rewards, batch.valid)
    return {
        "true_reward": float(earned.mean()),
        "reward_std": float(earned.std()),
        "kl": float(kl.mean()),
        "length": float(batch.mask.sum(1).float().mean()),
    }


def log_prob(module: PolicyModule, batch: Batch) -> torch.Tensor:
    """Log-probability of each reply, (B,)."""
    token_log_probs = module.policy(batch.obs, batch.mask).log_prob(batch.actions[batch.mask])
    return row_sums(scattered(token_log_probs, batch.mask), batch.mask)


def without(batch: Batch, tokens: int) -> Batch:
    """Rows with this many tokens removed from the end of their prompts."""
    if not tokens:
        return batch
    prompts, replies = [], []
    for obs, actions, mask in zip(batch.obs.tolist(), batch.actions.tolist(), batch.mask.tolist(), strict=True):
        first, count = mask.index(True), sum(mask)
        prompts.append(obs[: first + 1 - tokens])
        replies.append(actions[first : first + count])
    return as_rows(prompts, replies)


class Course(L.Callback):
    """Callback that writes metrics of each collection to `course.json`: proxy and true reward, KL, length."""

    NAMES = {"train/score": "proxy", "train/kl": "kl"}

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        row = {
            short: float(x)
            for name, short in self.NAMES.items()
            if (x := trainer.callback_metrics.get(name)) is not None
        }
        statistics = getattr(trainer.datamodule, "statistics", {})  # type: ignore[attr-defined]
        self.rows.append(
            row | {name: statistics[name] for name in ("return", "true_reward", "length") if name in statistics}
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        (Path(trainer.default_root_dir) / "course.json").write_text(json.dumps(self.rows))


class Measures(L.Callback):
    """Callback that writes the last validation metrics to `measures.json`."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        metrics = {name: float(x) for name, x in trainer.callback_metrics.items()}
        (Path(trainer.default_root_dir) / "measures.json").write_text(json.dumps(metrics))
