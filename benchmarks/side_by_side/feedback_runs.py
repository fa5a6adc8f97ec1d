"""Runs of `feedback.py`: the shared start of a seed, and a method's training and evaluation on held-out prompts."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import torch

from benchmarks.side_by_side.rlhf_runs import command
from data_modules.feedback import read, write
from data_modules.text import RevisionDataModule, SourcedAnswers, TextDataModule, WordTokenizer
from data_modules.text.expected import with_expected
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.modules import PolicyModule

MAX_NEW, CONTEXT = 20, 96
JUDGED = 512  # held-out prompts


def start(seed: int, pools: dict[str, int | None]) -> None:
    """Prepare the start of a seed in `outputs`: the model that all runs start from, and for each pool of expected
    responses an expert fine-tuned on them, and a file with them and the start's answers. Finished stages are kept.
    """
    weights = f"outputs/answers/sft-seed{seed}/checkpoints/last.ckpt"
    run_once("fit", "answers/sft", seed, f"answers/sft-seed{seed}", {})
    for name, prompts in pools.items():
        of = {
            "model.policy.weights": weights,
            "data.prompts": prompts,
            "data.minibatches": 20 if prompts is None else 4,
        }
        run_once("fit", "answers/expert", seed, f"expert-{name}-seed{seed}", of)
    changes = {"model.policy.weights": weights, "data.evaluation_prompts": None}
    folder = run_once("predict", "answers/sample", seed, f"answers-seed{seed}", changes)
    replies = read(folder / "predictions" / "replies.jsonl")
    task = SourcedAnswers()
    for name, prompts in pools.items():
        expected = {case.id: text for case, text in with_expected(task, prompts, 0)}
        lines = [replace(reply, score=None, expected=expected[reply.id]) for reply in replies if reply.id in expected]
        write(folder / f"expected-{name}.jsonl", lines)


def run_once(stage: str, name: str, seed: int, run_dir: str, changes: dict[str, Any]) -> Path:
    folder = Path("outputs") / run_dir
    if not (folder / "finished").is_file():
        command(stage, name, seed, run_dir, changes)
        (folder / "finished").touch()
    return folder


def checkpoint(seed: int) -> Path:
    return Path(f"outputs/answers/sft-seed{seed}/checkpoints/last.ckpt")


def run(
    name: str, method: dict[str, Any], cell: dict[str, Any], start_seed: int, seed: int, testing: bool
) -> dict[str, Any]:
    """Train from the start of `start_seed` until every budget is spent, then evaluate the weights at each budget.

    The figures of the row are those at the first budget, or at the end for a run that does not use it. `after` holds
    the figures at each budget, and `spent` the counters then. `course` holds the counters and rewards (greedy and
    sampled) of each validation, and the final counters.
    """
    if "yaml" not in method:  # the start itself
        return evaluate_weights(checkpoint(start_seed), seed, testing, revised=True)
    of_start = {key: value.replace("START", str(start_seed)) for key, value in method.get("of_start", {}).items()}
    changes = {"model.policy.weights": str(checkpoint(start_seed))} | of_start | method.get("changes", {}) | cell
    course = {"class_path": f"{__name__}.Course", "init_args": {"budgets": method["budgets"]}}
    changes |= {"trainer.callbacks+": course}
    folder = command("fit", method["yaml"], seed, f"method-{os.getpid()}/{name}", changes)
    figures = json.loads((folder / "course.json").read_text())
    steps = {budget: counters["optimizer_steps"] for budget, counters in figures["spent"].items()}
    weights = {step: folder / f"{step}.ckpt" for step in steps.values()} | {None: folder / "checkpoints" / "last.ckpt"}
    first = steps.get(next(iter(method["budgets"])))
    suffix = method.get("suffix", "")
    earned = {step: evaluate_weights(weights[step], seed, testing, suffix) for step in {first, *steps.values()}}
    shutil.rmtree(folder)
    return earned[first] | figures | {"after": {budget: earned[step] for budget, step in steps.items()}}


@torch.no_grad()
def evaluate_weights(
    weights: Path, seed: int, testing: bool, suffix: str = "", revised: bool = False
) -> dict[str, Any]:
    """Mean reward on held-out test or validation prompts, greedy and sampled. With `revised` also after one revision by
    the same model, given the reply's own critique, another reply's critique, or a generic one.
    """
    agent = PolicyModule.load_from_checkpoint(weights).eval()
    data = (RevisionDataModule if revised else TextDataModule)(
        SourcedAnswers(),
        tokenizer=WordTokenizer(),
        max_new=MAX_NEW,
        context=CONTEXT,
        evaluation_prompts=JUDGED,
        prompt_suffix=suffix,
        seed=seed,
    )
    on_cpu = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, testing=testing, strategy=on_cpu)  # type: ignore[assignment]
    data.setup("test")
    figures = {}
    for name, deterministic in (("greedy", True), ("sampled", False)):
        batch = data.evaluate(agent, np.random.default_rng(seed), deterministic)
        assert batch.rewards is not None
        figures[name] = float(row_sums(batch.rewards, batch.valid).mean())
        figures |= {f"{key}_{name}": float(batch.metrics[key].mean()) for key in batch.metrics if "revised" in key}
        figures[f"facts_{name}"] = float(batch.metrics["part/facts"].mean())
        figures[f"length_{name}"] = float(batch.metrics["length"].mean())
    return figures


class Course(L.Callback):
    """Callback that records the validations into `course.json`, and stops the run when all its budgets are spent.

    Args:
        budgets: limits for counters of the DataModule and for `optimizer_steps`. When one is spent, the weights are
            saved as `STEP.ckpt`. A run never spends the budget of a counter that it does not have.
    """

    COUNTERS = ("env_steps", "feedback_calls", "critiques", "labels")

    def __init__(self, budgets: dict[str, int]) -> None:
        self.budgets = budgets
        self.course: list[dict[str, float]] = []
        self.spent: dict[str, dict[str, float]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        metrics = trainer.callback_metrics
        metric_names = {"greedy": "val/return", "sampled": "val/return_sampled"}
        earned = {name: float(metrics[key]) for name, key in metric_names.items() if key in metrics}
        self.course.append(self._counters(trainer) | earned)

    def _counters(self, trainer: L.Trainer) -> dict[str, float]:
        counters = trainer.datamodule.counters  # type: ignore[attr-defined]
        values = {name: counters[name] for name in self.COUNTERS if name in counters}
        return values | {"optimizer_steps": trainer.global_step}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        counters = self._counters(trainer)
        now = {name: counters for name, budget in self.budgets.items() if counters.get(name, 0) >= budget}
        if now.keys() - self.spent.keys():
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{counters['optimizer_steps']}.ckpt")
        self.spent = now | self.spent
        if self.spent.keys() == self.budgets.keys():
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        figures = {"course": [*self.course, self._counters(trainer)], "spent": self.spent}
        (Path(trainer.default_root_dir) / "course.json").write_text(json.dumps(figures))
