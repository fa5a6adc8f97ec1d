"""Runs of `process.py`: the shared start of a seed, its reward models as judges, and PPO with their rewards."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from benchmarks.side_by_side.rlhf_runs import Course, command, log_prob
from data_modules.text import ArithmeticSteps, TextDataModule, WordTokenizer
from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.scorers import AGGREGATES, CheckpointReward

PROMPTS, REPLIES = 300, 16  # held-out sums, and samples per sum
MAX_NEW, CONTEXT, STEP_END = 28, 40, "."


def start(seed: int) -> None:
    """Prepare a seed: fine-tuned model, labelled replies, both reward models. Finished stages are not repeated."""
    for stage, name in (
        ("fit", "sums/sft"), ("predict", "sums/sample"), ("fit", "sums/step_reward"), ("fit", "sums/outcome_reward")
    ):  # fmt: skip
        if not (finished := Path(f"outputs/{name}-seed{seed}/finished")).is_file():
            shutil.rmtree(f"outputs/{name}-seed{seed}", ignore_errors=True)  # remains of an interrupted run
            command(stage, name, seed, f"{name}-seed{seed}", {})
            finished.touch()


def best(name: str, seed: int) -> Path:
    return Path(f"outputs/{name}-seed{seed}/checkpoints/best.ckpt")


def run(name: str, method: dict[str, Any], cell: dict[str, Any], seed: int) -> dict[str, Any]:
    """Figures of the judges, or of a policy that was trained with the rewards of one."""
    if name == "judges":
        return judges(seed)
    if "yaml" not in method:  # the start itself
        return evaluate_policy(best("sums/sft", seed), seed) | {"sampled_tokens": 0}
    changes = method.get("changes", {}) | cell | {"trainer.callbacks+": f"{Course.__module__}.Course"}
    folder = command("fit", method["yaml"], seed, f"method-{os.getpid()}/{name}", changes)
    figures = evaluate_policy(folder / "checkpoints" / "last.ckpt", seed)
    course = json.loads((folder / "course.json").read_text())
    counters = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["TextDataModule"]["counters"]
    shutil.rmtree(folder)
    return figures | {"course": course, "sampled_tokens": counters["env_steps"]}


def task_of(seed: int) -> TextDataModule:
    data = TextDataModule(
        ArithmeticSteps(seed=seed, sums=10_000, wrong=0.2, largest=20),
        tokenizer=WordTokenizer(),
        max_new=MAX_NEW,
        context=CONTEXT,
        evaluation_prompts=PROMPTS,
        evaluation_replies=REPLIES,
        seed=seed,
    )
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, testing=True)  # type: ignore[assignment]
    data.setup("test")
    return data


@torch.no_grad()
def sampled(agent: PolicyModule, data: TextDataModule, seed: int) -> Batch:
    torch.manual_seed(seed)
    return data.evaluate(agent, np.random.default_rng(seed), deterministic=False)


@torch.no_grad()
def evaluate_policy(checkpoint: Path, seed: int) -> dict[str, float]:
    """Mean true reward, KL from the start, length and finished share of sampled replies to held-out prompts."""
    agent, reference = (PolicyModule.load_from_checkpoint(path).eval() for path in (checkpoint, best("sums/sft", seed)))
    batch = sampled(agent, task_of(seed), seed)
    assert batch.rewards is not None
    return {
        "true_reward": float(row_sums(batch.rewards, batch.valid).mean()),
        "kl": float((log_prob(agent, batch) - log_prob(reference, batch)).mean()),
        "length": float(batch.mask.sum(1).float().mean()),
        "finished": float(batch.metrics["finished"].mean()),
    }


def judges(seed: int) -> dict[str, Any]:
    """Figures by judge: discrimination of right and wrong replies, and best-of-n accuracy."""
    data = task_of(seed)
    batch = sampled(PolicyModule.load_from_checkpoint(best("sums/sft", seed)).eval(), data, seed)
    assert batch.rewards is not None
    right = row_sums(batch.rewards, batch.valid).numpy()
    (end,) = data.tokenizer.encode(STEP_END)
    process = CheckpointReward(str(best("sums/step_reward", seed)), step_end_token=end)
    ends, rewards = process.ends(batch), process.score(batch)
    scores = {f"process, {name}": rule(rewards, ends).numpy() for name, rule in AGGREGATES.items()}
    outcome = CheckpointReward(str(best("sums/outcome_reward", seed)))
    scores["outcome"] = row_sums(outcome.score(batch), batch.valid).numpy()
    scores["chance"] = np.random.default_rng(seed).random(len(right))
    scores["the rule itself"] = right
    return {"judges": {name: judge_figures(score, right) for name, score in scores.items()}}


def judge_figures(score: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Figures of one judge. Args: score, right: (PROMPTS · REPLIES,), with the replies to a prompt adjacent."""
    return {
        "accuracy": float(((score > 0.5) == (right > 0.5)).mean()),
        "auc": area_under_curve(score, right > 0.5),
        "best_of_4": best_of(4, score, right),
        "best_of_16": best_of(16, score, right),
    }


def area_under_curve(score: np.ndarray, right: np.ndarray) -> float:
    """AUC: P(a right reply scores above a wrong one), ties half, from the Mann-Whitney U statistic."""
    count = int(right.sum())
    rank_sum = rankdata(score)[right].sum()
    return float((rank_sum - count * (count + 1) / 2) / (count * (len(right) - count)))


def best_of(n: int, score: np.ndarray, right: np.ndarray) -> float:
    """Best of n: mean of `right` at the highest score of each n adjacent replies; ties are averaged."""
    score, right = score.reshape(-1, n), right.reshape(-1, n)
    top = score == score.max(1, keepdims=True)
    return float(((right * top).sum(1) / top.sum(1)).mean())
