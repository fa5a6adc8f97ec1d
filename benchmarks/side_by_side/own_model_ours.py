"""Our side of a cell of `own_model.py`: rows, yaml and command of `python -m lightning_nlf fit`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.side_by_side.own_model_rows import pairs

FIGURES = "figures.json"  # written by `own_model_steps.Steps` beside the yaml
POLICIES = {"decoder": "TransformerPolicy", "huggingface": "HuggingFacePolicy"}


def command(side: str, settings: dict[str, Any], folder: Path) -> list[str]:
    """Write rows and yaml into `folder`, and return the command.

    Args: side: "decoder" or "huggingface"; settings: settings of the cell.
    """
    rows, yaml = folder / "rows.jsonl", folder / "fit.yaml"
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines(settings["objective"], settings["count"])))
    yaml.write_text(json.dumps(config(side, settings, folder), indent=1))  # JSON is YAML
    fit = ["fit", "--config", str(yaml), "--run_dir", str(folder / "run")]
    return [sys.executable, "-m", "lightning_nlf", *fit]


def lines(objective: str, count: int) -> list[dict[str, Any]]:
    """Lines of a feedback file: demonstrations, or rankings of two replies."""
    records = []
    for pair in pairs(count):
        prompt = [{"role": "user", "content": pair.prompt}]
        replies = {"responses": [pair.chosen, pair.rejected], "ranking": "A > B"}
        records.append({"prompt": prompt} | ({"expected": pair.chosen} if objective == "sft" else replies))
    return records


def config(side: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    steps = settings["count"] // settings["rows"]  # per pass
    policy: dict[str, Any] = {"weights": settings["model"], "checkpoint_activations": True}
    if lora := settings["lora"]:
        policy["lora"] = {"r": lora["r"], "alpha": lora["lora_alpha"], "target_modules": lora["target_modules"]}
    tokenizer = {"path": settings["model"], "pad": "<|endoftext|>"}
    data = {
        "tokenizer": {"class_path": "data_modules.text.FolderTokenizer", "init_args": tokenizer},
        "path": str(folder / "rows.jsonl"),
        "minibatches": steps,
        "passes": settings["steps"] // steps,
        "rows_per_batch": 1 if settings["objective"] == "sft" else 2,  # a pair
    }
    model: dict[str, Any] = {
        "policy": {"class_path": f"lightning_nlf.networks.{POLICIES[side]}", "init_args": policy},
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": settings["lr"], "weight_decay": 0.0, "fused": True},  # fused like TRL's default
        },
    }
    if settings["objective"] == "sft":
        source, objective = "data_modules.text.DemonstrationsDataModule", "ImitationPolicy"
        model["divergence"] = "nll"
    else:
        source, objective = "data_modules.feedback.FeedbackDataModule", "DPOPolicy"
        data["use"], model["beta"] = ["ranking"], 0.1
    watch = {
        "class_path": "benchmarks.side_by_side.own_model_steps.Steps",
        "init_args": {"path": str(folder / FIGURES)},
    }
    return {
        "trainer": {
            "accelerator": "cpu",
            "logger": False,  # TRL logs nowhere
            "max_epochs": 1,
            "gradient_clip_val": 1.0,
            "callbacks": [watch],
        },
        "model": {"class_path": f"lightning_nlf.objectives.{objective}", "init_args": model},
        "data": {"class_path": source, "init_args": data},
    }
