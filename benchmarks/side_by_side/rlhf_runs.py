"""One run of `rlhf.py`: the shared start of a seed, and a method from it to its true reward and KL."""

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
from lightning_nlf.objective import scattered

noise.silence()
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)

MAX_NEW, CONTEXT = 26, 48


def command(stage: str, name: str, seed: int, run_dir: str, changes: dict[str, Any], of: str = "rlhf") -> Path:
    """`python -m lightning_nlf stage --config conf/rlhf/name.yaml …` in this process; its run folder."""
    folder = Path("outputs") / run_dir
    words = [stage, "--config", str(CONF / of / f"{name}.yaml"), "--seed_everything", str(seed)]
    words += ["--run_dir", str(folder), "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    for key, value in changes.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        command_line(words)
    return folder


def start(seed: int) -> None:
    """The fine-tuned model, its ranked replies and the reward model of a seed."""
    played_round(seed, ("fit", "sft"), ("predict", "sample"), ("fit", "reward"))


def played_round(seed: int, *steps: tuple[str, str]) -> None:
    """Yamls one after the other, each in a run folder of `outputs`; what is there stays. Replies are ranked."""
    for stage, name in steps:
        folder = Path(f"outputs/{name}-seed{seed}")
        if (finished := folder / "finished").is_file():
            continue
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off
        command(stage, name, seed, folder.name, {})
        if stage == "predict":
            replies, ranked = folder / "predictions" / "replies.jsonl", folder / "rankings.jsonl"
            with redirect_stdout(io.StringIO()):
                rank(["rank", str(replies), "--by", "score", "--ties", "0.02", "--out", str(ranked)])
        finished.touch()


def run(name: str, method: dict[str, Any], cell: dict[str, Any], seed: int) -> dict[str, Any]:
    """Trains, then plays the last weights on the held-out prompts."""
    start_of = Path(f"outputs/sft-seed{seed}/checkpoints/best.ckpt")
    if "yaml" not in method:  # the start itself
        return judged(start_of, start_of, "", seed) | {"reward_model": measured_reward(seed)}
    if method.get("second_round"):
        played_round(seed, ("fit", "rlhf_ppo"), ("predict", "second_sample"), ("fit", "second_reward"))
    # every step is logged, so that what is read after a collection is that collection's
    changes = {"trainer.callbacks+": f"{__name__}.Course", "trainer.log_every_n_steps": 1}
    own = f"method-{os.getpid()}/{name}"
    folder = command("fit", method["yaml"], seed, own, method.get("changes", {}) | cell | changes)
    last = folder / "checkpoints" / "last.ckpt"
    figures = judged(last, start_of, method.get("suffix", ""), seed) | spent(last, seed)
    course = json.loads((folder / "course.json").read_text())
    shutil.rmtree(folder)
    return figures | {"course": course}


def spent(checkpoint: Path, seed: int) -> dict[str, int]:
    """Optimizer steps, and tokens that were sampled to train on: those of the file where nothing was sampled anew."""
    kept = torch.load(checkpoint, weights_only=True)
    counters = next(kept[name]["counters"] for name in ("TextDataModule", "FeedbackDataModule") if name in kept)
    if "env_steps" in counters:  # those of replies that were rejected too
        return {"optimizer_steps": kept["global_step"], "sampled_tokens": counters["env_steps"]}
    lines = Path(f"outputs/sample-seed{seed}/rankings.jsonl").read_text().splitlines()
    tokens = sum(len(reply) for line in lines for reply in json.loads(line)["meta"]["tokens"])
    return {"optimizer_steps": kept["global_step"], "sampled_tokens": tokens}


def measured_reward(seed: int) -> dict[str, float]:
    """What `val/` says of the reward model on held-out rankings, by name."""
    changes = {"trainer.callbacks+": f"{__name__}.Measures", "ckpt_path": "best"}
    folder = Path("outputs") / f"reward-seed{seed}"
    command("validate", "reward", seed, folder.name, changes)
    return json.loads((folder / "measures.json").read_text())


@torch.no_grad()
def judged(checkpoint: Path, start_of: Path, suffix: str, seed: int) -> dict[str, Any]:
    """Mean true reward, KL from the start and reply length, of sampled replies to the test prompts."""
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
    bare = without(batch, len(data.tokenizer.encode(suffix)))  # the start was never told of codes
    kl = log_prob(agent, batch) - log_prob(reference, bare)
    earned = row_sums(batch.rewards, batch.valid)
    return {
        "true_reward": float(earned.mean()),
        "reward_std": float(earned.std()),
        "kl": float(kl.mean()),
        "length": float(batch.mask.sum(1).float().mean()),
    }


def log_prob(module: PolicyModule, batch: Batch) -> torch.Tensor:
    """Of each reply, (B,)."""
    own = module.policy(batch.obs, batch.mask).log_prob(batch.actions[batch.mask])
    return row_sums(scattered(own, batch.mask), batch.mask)


def without(batch: Batch, tokens: int) -> Batch:
    """The rows with so many tokens fewer at the end of their prompts."""
    if not tokens:
        return batch
    prompts, replies = [], []
    for obs, actions, said in zip(batch.obs.tolist(), batch.actions.tolist(), batch.mask.tolist(), strict=True):
        first, count = said.index(True), sum(said)
        prompts.append(obs[: first + 1 - tokens])
        replies.append(actions[first : first + count])
    return as_rows(prompts, replies)


class Course(L.Callback):
    """What was logged of each collection, into `course.json` of the run: proxy and true reward, KL, length."""

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
    """What was measured last, into `measures.json` of the run."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        metrics = {name: float(x) for name, x in trainer.callback_metrics.items()}
        (Path(trainer.default_root_dir) / "measures.json").write_text(json.dumps(metrics))
