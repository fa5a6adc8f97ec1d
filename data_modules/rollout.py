"""Rollouts: in every epoch the policy in training collects new rows. Evaluations play episodes with the policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from data_modules.label_buffer import LabelBuffer
from data_modules.minibatches import TEST, VALIDATION, MinibatchDataModule
from lightning_nlf.batch import Batch


class RolloutDataModule(MinibatchDataModule):
    """Collect rows with the policy in training, and split them into minibatches.

    Subclasses implement `collect` and `evaluate`, and set `counters` and `statistics`.

    Args: seed, minibatches, passes, rows_per_batch, tokens_per_batch: see `MinibatchDataModule`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.counters |= {"env_steps": 0, "expert_steps": 0, "labels": 0}

    def val_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(VALIDATION)

    def test_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(TEST)

    def predict_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(TEST)


class LabelledRollouts(RolloutDataModule):
    """Rollouts with labels from an expert. A label buffer may keep the labels for later collections.

    Args:
        label_buffer: buffer that stores the expert's labels for imitation steps in addition to the minibatches; None =
            no buffer.
        seed, minibatches, passes, rows_per_batch, tokens_per_batch: see `MinibatchDataModule`.
    """

    def __init__(self, label_buffer: LabelBuffer | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.label_buffer = label_buffer

    # ---- training

    @property
    def updates(self) -> int:
        return super().updates + (self.label_buffer.updates if self.label_buffer else 0)

    def cut(self, batch: Batch, rng: np.random.Generator) -> Iterator[Batch]:
        yield from super().cut(batch, rng)
        if self.label_buffer is not None:
            updates = range(self.label_buffer.updates)
            labels = [self.label_buffer.draw(batch, rng, self._accumulate) for _ in updates]
            yield from self._stamped(labels, [torch.arange(len(rows)) for rows in labels], rng)

    # ---- checkpoint

    def rank_state(self) -> dict[str, Any]:
        return {} if self.label_buffer is None else {"label_buffer": self.label_buffer.state_dict()}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        if self.label_buffer is not None:
            self.label_buffer.load_state_dict(state["label_buffer"])
