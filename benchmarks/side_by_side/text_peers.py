"""Peers' side of `text_speed.py`: `generate` of transformers, and the trainers of TRL."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from benchmarks.side_by_side import text_task
from benchmarks.side_by_side.text_task import LR, PROMPT, REPLY, chosen, pays, prompts, rejected, write_model

logging.set_verbosity_error()
disable_progress_bars()
Figures = dict[str, Any]
WARM = 3  # optimizer steps that are not timed


class Steps(TrainerCallback):
    """Callback that records the end times of optimizer steps, and the last loss."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.loss = float("nan")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.loss = float(logs["loss"])

    @property
    def milliseconds(self) -> float:
        timed = self.times[WARM - 1 :]
        return 1e3 * (timed[-1] - timed[0]) / (len(timed) - 1)


def model_of(path: Path, mode: str, head: bool = False) -> PreTrainedModel:
    """Load a model. Args: mode: "best" uses the attention that is fastest on a CPU; head: add a reward head."""
    how = {"attn_implementation": "eager"} if mode == "best" else {}
    if head:
        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32, **how)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **how)


def settings(mode: str, rows: int, steps: int, lr: float = LR) -> dict[str, Any]:
    """Arguments of any trainer: "default" is TRL's default with our batches, "best" its fastest mode."""
    shared = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": rows,
        "max_steps": steps + WARM,
        "learning_rate": lr,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "max_grad_norm": 1.0,
        "bf16": False,
    }
    if mode == "best":
        shared |= {"bf16": True, "gradient_checkpointing": False}
    return shared


def run(trainer: Any) -> Figures:
    watch = Steps()
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"value": watch.milliseconds, "loss": watch.loss}


def words(ids: list[int]) -> str:
    return " ".join("<eos>" if i == text_task.EOS else f"w{i}" for i in ids)


def sft(repeat: int, folder: str, shape: str, mode: str, rows: int = 32, steps: int = 8, lr: float = LR) -> Figures:
    """Milliseconds per optimizer step of SFT on `rows` demonstrations."""
    path = write_model(shape, Path(folder))
    pairs = zip(prompts(shape, rows), chosen(shape, rows), strict=True)
    data = [{"input_ids": p + r, "completion_mask": [0] * PROMPT + [1] * REPLY} for p, r in pairs]
    config = SFTConfig(**settings(mode, rows, steps, lr), max_length=None, completion_only_loss=True)
    tokenizer = AutoTokenizer.from_pretrained(path)
    return run(
        SFTTrainer(model_of(path, mode), config, train_dataset=Dataset.from_list(data), processing_class=tokenizer)
    )


def reward(repeat: int, folder: str, shape: str, mode: str, pairs: int = 16, steps: int = 8, lr: float = LR) -> Figures:
    """Milliseconds per optimizer step of a Bradley-Terry reward model on `pairs` pairs."""
    path = write_model(shape, Path(folder))
    rows = zip(prompts(shape, pairs), chosen(shape, pairs), rejected(shape, pairs), strict=True)
    data = [{"chosen_ids": p + c, "rejected_ids": p + r} for p, c, r in rows]
    config = RewardConfig(**settings(mode, pairs, steps, lr), max_length=None)
    model = model_of(path, mode, head=True)
    with torch.no_grad():
        model.score.weight.fill_(0.0)  # both sides start from the loss ln 2
    tokenizer = AutoTokenizer.from_pretrained(path)
    return run(RewardTrainer(model, config, train_dataset=Dataset.from_list(data), processing_class=tokenizer))


def dpo(
    repeat: int,
    folder: str,
    shape: str,
    mode: str,
    cached: bool = False,
    pairs: int = 16,
    steps: int = 8,
    lr: float = LR,
) -> Figures:
    """Milliseconds per optimizer step of DPO on `pairs` pairs; `cached`: precomputed reference log-probabilities."""
    path = write_model(shape, Path(folder))
    rows = zip(prompts(shape, pairs), chosen(shape, pairs), rejected(shape, pairs), strict=True)
    # the trainer appends the end-of-sequence token to a reply itself
    data = [{"prompt": words(p) + " ", "chosen": words(c[:-1]), "rejected": words(r[:-1])} for p, c, r in rows]
    config = DPOConfig(**settings(mode, pairs, steps, lr), max_length=None, beta=0.1, precompute_ref_log_probs=cached)
    tokenizer = AutoTokenizer.from_pretrained(path)
    trainer = DPOTrainer(
        model_of(path, mode),
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    return run(trainer)


def grpo(repeat: int, folder: str, shape: str, mode: str, groups: int = 8, copies: int = 8, steps: int = 3) -> Figures:
    """Milliseconds per GRPO iteration: `groups` prompts, `copies` replies of 64 tokens each, one optimizer step."""
    path = write_model(shape, Path(folder))
    data = [{"prompt": words(p)} for p in prompts(shape, groups)]

    def rewards(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [pays(ids) for ids in completion_ids]

    config = GRPOConfig(
        **settings(mode, groups * copies, steps),
        num_generations=copies,
        max_completion_length=REPLY,
        beta=0.0,  # no KL penalty and no reference, like on our side
        generation_kwargs={"min_new_tokens": REPLY},
    )
    trainer = GRPOTrainer(
        model=model_of(path, mode),
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    return run(trainer)


@torch.no_grad()
def generation(repeat: int, folder: str, shape: str, mode: str, rows: int) -> Figures:
    """New tokens per second of `generate`, with replies of 64 tokens.

    Args: mode: "fp32" or "bf16".
    """
    path = write_model(shape, Path(folder))
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    ids = torch.tensor(prompts(shape, rows))
    for timed in (False, True):
        torch.manual_seed(repeat)
        started = time.perf_counter()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=REPLY,
            min_new_tokens=REPLY,
        )
        spent = time.perf_counter() - started
        if not timed:
            assert out.shape == (rows, PROMPT + REPLY)
    return {"value": rows * REPLY / spent}
