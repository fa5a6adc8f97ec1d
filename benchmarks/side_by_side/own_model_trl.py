"""TRL's side of a cell of `own_model.py`: SFTTrainer or DPOTrainer on a folder with a model, in this process.

    python -m benchmarks.side_by_side.own_model_trl '{"objective": "sft", "model": "FOLDER", …}'

Prints the figures as one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.side_by_side.own_model_rows import pairs

logging.set_verbosity_error()
disable_progress_bars()


class Steps(TrainerCallback):
    """Callback that records wall and CPU times at the end of optimizer steps, their losses, and peak memory."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []
        self.peak_kib = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def settings(rows: int, steps: int, lr: float, checkpointing: bool, per_batch: int | None) -> dict[str, Any]:
    """Arguments of either trainer in fp32: those shared by both sides, and TRL's defaults otherwise."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": per_batch or rows,
        "gradient_accumulation_steps": rows // (per_batch or rows),
        "max_steps": steps,
        "learning_rate": lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": checkpointing,
        "bf16": False,
        "max_length": None,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }


def demonstrations(tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """Token ids of prompt and reply, including the end token, with a mask on the reply."""
    examples = []
    for pair in pairs(count):
        prompt = tokenizer(posed(tokenizer, pair.prompt)).input_ids
        reply = [*tokenizer(pair.chosen).input_ids, tokenizer.eos_token_id]
        mask = [0] * len(prompt) + [1] * len(reply)
        examples.append({"input_ids": prompt + reply, "completion_mask": mask})
    return examples


def posed(tokenizer: Any, prompt: str) -> str:
    """Prompt in the model's chat template, up to the beginning of the reply."""
    chat = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def trainer_of(objective: str, lora: dict[str, Any] | None, model: str, count: int, config: dict[str, Any]) -> Any:
    """Build a trainer. Args: objective: "sft" or "dpo"; lora: arguments of LoraConfig; count: number of rows."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    shared = {"processing_class": tokenizer, "peft_config": lora and LoraConfig(**lora, task_type="CAUSAL_LM")}
    if objective == "sft":
        data = Dataset.from_list(demonstrations(tokenizer, count))
        return SFTTrainer(network, SFTConfig(**config, completion_only_loss=True), train_dataset=data, **shared)
    # the trainer appends the end-of-sequence token to a reply itself
    rows = [{"prompt": posed(tokenizer, p.prompt), "chosen": p.chosen, "rejected": p.rejected} for p in pairs(count)]
    arguments = DPOConfig(**config, beta=0.1, precompute_ref_log_probs=True)
    return DPOTrainer(network, args=arguments, train_dataset=Dataset.from_list(rows), **shared)


def main() -> None:
    cell = json.loads(sys.argv[1])
    config = settings(cell["rows"], cell["steps"], cell["lr"], cell["checkpointing"], cell["per_batch"])
    trainer = trainer_of(cell["objective"], cell["lora"], cell["model"], cell["count"], config)
    watch = Steps()
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    figures = vars(watch) | {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
