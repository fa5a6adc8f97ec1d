"""The weights of best.ckpt in a policy, for as long as something is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
from torch import Tensor

from lightning_nlf.callbacks.checkpoints import BestCheckpoint
from lightning_nlf.checkpoint_io import SafeCheckpointIO


def best_of(trainer: L.Trainer) -> BestCheckpoint | None:
    """The callback that has saved a best iteration of this run; None where no monitor has picked one."""
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, BestCheckpoint)]  # type: ignore[attr-defined]
    return next((each for each in callbacks if each.best_model_path and each.path.is_file()), None)


@dataclass(frozen=True)
class BestIteration:
    """Which iteration it is, and the metric by which it is the best, in words."""

    number: int
    value: str

    def __str__(self) -> str:
        return f"best.ckpt (iteration {self.number}, {self.value})"


@contextmanager
def best_weights(module: L.LightningModule, best: BestCheckpoint) -> Iterator[BestIteration]:
    """Inside, the module's policy is that of the best iteration; then what it was.

    Raises:
        ValueError, OSError: the file cannot be read.
    """
    checkpoint = SafeCheckpointIO().load_checkpoint(best.path)
    saved = checkpoint["state_dict"]  # of LoRA the additions: their base is the same
    aside: dict[Tensor, Tensor] = {}  # a tensor may have two names
    try:
        for name, x in module.state_dict(keep_vars=True).items():
            if name in saved and name.startswith("policy."):
                aside.setdefault(x, x.data)
                x.data = saved[name].to(x.device, x.dtype)
        yield BestIteration(checkpoint["epoch"] + 1, best.best_value)
    finally:
        for x, data in aside.items():
            x.data = data
