"""Callback that measures our fits for `own_model.py`."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch


class Steps(L.Callback):
    """Records wall and CPU times at the end of optimizer steps, their losses, and peak memory.

    Args: path: JSON file to write at the end of training.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []
        self.peak_kib = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.losses.append(float(outputs["loss"]))
        self.peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        figures = {name: getattr(self, name) for name in ("wall", "cpu", "losses", "peak_kib")}
        figures |= {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
        self.path.write_text(json.dumps(figures))
