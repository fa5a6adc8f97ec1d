"""One run of `feedback.py`: the shared start of a seed, and a method from it to what it earns on held-out prompts."""

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
    """The model that everything of a seed starts from, in `outputs`; for each pool of expected responses an expert that
    was fine-tuned on them, and a file of them beside the start's own answers. What is there stays.
    """
    weights = f"outputs/feedback_sft-seed{seed}/checkpoints/last.ckpt"
    made("fit", "feedback_sft", seed, f"feedback_sft-seed{seed}", {})
    for name, prompts in pools.items():
        of = {
            "model.policy.weights": weights,
            "data.prompts": prompts,
            "data.minibatches": 20 if prompts is None else 4,
        }
        made("fit", "feedback_expert", seed, f"expert-{name}-seed{seed}", of)
    drawn = {"model.policy.weights": weights, "data.evaluation_prompts": None}
    folder = made("predict", "answers_sample", seed, f"answers-seed{seed}", drawn)
    replies = read(folder / "predictions" / "replies.jsonl")
    task = SourcedAnswers()
    for name, prompts in pools.items():
        expected = {case.id: text for case, text in with_expected(task, prompts, 0)}
        own = [replace(each, score=None, expected=expected[each.id]) for each in replies if each.id in expected]
        write(folder / f"expected-{name}.jsonl", own)


def made(stage: str, name: str, seed: int, run_dir: str, changes: dict[str, Any]) -> Path:
    folder = Path("outputs") / run_dir
    if not (folder / "finished").is_file():
        command(stage, name, seed, run_dir, changes, of="feedback")
        (folder / "finished").touch()
    return folder


def checkpoint(seed: int) -> Path:
    return Path(f"outputs/feedback_sft-seed{seed}/checkpoints/last.ckpt")


def run(
    name: str, method: dict[str, Any], cell: dict[str, Any], start_seed: int, seed: int, testing: bool
) -> dict[str, Any]:
    """Trains from the start of `start_seed` until every budget is spent, then plays the weights that it had at each.

    Of the first budget, or where nothing of it is used of the end, are the row's own figures; of all of them those
    in `after`, with what was taken by then in `spent`. `course` holds the validations: tokens, feedback calls, what the
    mode earns and what a sample earns; and last what was taken in all.
    """
    if "yaml" not in method:  # the start itself
        return judged(checkpoint(start_seed), seed, testing, revised=True)
    of_start = {key: value.replace("START", str(start_seed)) for key, value in method.get("of_start", {}).items()}
    changes = {"model.policy.weights": str(checkpoint(start_seed))} | of_start | method.get("changes", {}) | cell
    course = {"class_path": f"{__name__}.Course", "init_args": {"budgets": method["budgets"]}}
    changes |= {"trainer.callbacks+": course}
    folder = command("fit", method["yaml"], seed, f"method-{os.getpid()}/{name}", changes, of="feedback")
    found = json.loads((folder / "course.json").read_text())
    steps = {budget: taken["optimizer_steps"] for budget, taken in found["spent"].items()}
    weights = {step: folder / f"{step}.ckpt" for step in steps.values()} | {None: folder / "checkpoints" / "last.ckpt"}
    first = steps.get(next(iter(method["budgets"])))
    suffix = method.get("suffix", "")
    earned = {step: judged(weights[step], seed, testing, suffix) for step in {first, *steps.values()}}
    shutil.rmtree(folder)
    return earned[first] | found | {"after": {budget: earned[step] for budget, step in steps.items()}}


@torch.no_grad()
def judged(weights: Path, seed: int, testing: bool, suffix: str = "", revised: bool = False) -> dict[str, Any]:
    """What is earned on held-out prompts, of the test or else of the validation, greedily and sampled; if asked also
    what one revision by the same model makes of it, with the reply's own critique, another's, and one that fits any.
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
    here = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, testing=testing, strategy=here)  # type: ignore[assignment]
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
    """The validations of a run and its end, into `course.json`; stops it when all its budgets are spent.

    Args:
        budgets: of counters of the data module and of `optimizer_steps`. The weights at which one is spent are kept, as
            `STEP.ckpt`. What a run does not use it cannot spend: such a run ends by itself.
    """

    COUNTERS = ("env_steps", "feedback_calls", "critiques", "labels")

    def __init__(self, budgets: dict[str, int]) -> None:
        self.budgets = budgets
        self.course: list[dict[str, float]] = []
        self.spent: dict[str, dict[str, float]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        metrics = trainer.callback_metrics
        played = {"greedy": "val/return", "sampled": "val/return_sampled"}
        earned = {name: float(metrics[key]) for name, key in played.items() if key in metrics}
        self.course.append(self._taken(trainer) | earned)

    def _taken(self, trainer: L.Trainer) -> dict[str, float]:
        counters = trainer.datamodule.counters  # type: ignore[attr-defined]
        taken = {name: counters[name] for name in self.COUNTERS if name in counters}
        return taken | {"optimizer_steps": trainer.global_step}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        taken = self._taken(trainer)
        now = {name: taken for name, budget in self.budgets.items() if taken.get(name, 0) >= budget}
        if now.keys() - self.spent.keys():
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{taken['optimizer_steps']}.ckpt")
        self.spent = now | self.spent
        if self.spent.keys() == self.budgets.keys():
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        found = {"course": [*self.course, self._taken(trainer)], "spent": self.spent}
        (Path(trainer.default_root_dir) / "course.json").write_text(json.dumps(found))
