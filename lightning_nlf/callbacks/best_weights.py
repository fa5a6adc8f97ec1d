"""Load the weights of best.ckpt into a policy temporarily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
from torch import Tensor

from lightning_nlf.callbacks.checkpoints import BestCheckpoint
from lightning_nlf.checkpoint_io import SafeCheckpointIO


def best_of(trainer: L.Trainer) -> BestCheckpoint | None:
    """The callback that saved best.ckpt in this run; None if no best.ckpt was saved."""
    candidates = [callback for callback in trainer.callbacks if isinstance(callback, BestCheckpoint)]  # type: ignore[attr-defined]
    return next((best for best in candidates if best.best_model_path and best.path.is_file()), None)


@dataclass(frozen=True)
class BestIteration:
    """Number of the best iteration, and its metric as text, such as `val/return 0.5`."""

    number: int
    value: str

    def __str__(self) -> str:
        return f"best.ckpt (iteration {self.number}, {self.value})"


@contextmanager
def best_weights(module: L.LightningModule, best: BestCheckpoint) -> Iterator[BestIteration]:
    """Context manager in which the policy has the weights of best.ckpt. The current weights are restored on exit.

    Raises:
        ValueError, OSError: The file cannot be read.
    """
    checkpoint = SafeCheckpointIO().load_checkpoint(best.path)
    weights = checkpoint["state_dict"]  # with LoRA, only the adapter: the base has not changed
    aside: dict[Tensor, Tensor] = {}  # keyed by parameter, because tied parameters have two names
    try:
        for name, x in module.state_dict(keep_vars=True).items():
            if name in weights and name.startswith("policy."):
                aside.setdefault(x, x.data)
                x.data = weights[name].to(x.device, x.dtype)
        yield BestIteration(checkpoint["epoch"] + 1, best.best_value)
    finally:
        for x, data in aside.items():
            x.data = data
