"""Fresh rows for every epoch, played by the model that is being trained; and episodes to evaluate it on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from data_modules.label_buffer import LabelBuffer
from data_modules.minibatches import TEST, VALIDATION, MinibatchDataModule
from lightning_nlf.batch import Batch
from lightning_nlf.numbers import Seed, Size


class RolloutDataModule(MinibatchDataModule):
    """Collects with the model that is being trained, and cuts what it collected into minibatches.

    A child says how to `collect` and how to `evaluate`, and keeps `counters` and `statistics`.

    Args:
        seed, minibatches, passes: of `MinibatchDataModule`.
        label_buffer: remembers the expert's labels over collections, for imitation on top of the minibatches.
    """

    def __init__(
        self, seed: Seed = 0, minibatches: Size = 1, passes: Size = 1, label_buffer: LabelBuffer | None = None
    ) -> None:
        super().__init__(seed, minibatches, passes)
        self.label_buffer = label_buffer
        self.counters |= {"env_steps": 0, "expert_steps": 0, "labels": 0}

    # ---- what a child says, besides `collect` and `evaluate`

    def exhibits(self, folder: Path) -> list[Path]:
        """Files for people to look at, written into `folder`: an episode as a GIF, a transcript."""
        return []

    # ---- training

    @property
    def updates(self) -> int:
        return super().updates + (self.label_buffer.updates if self.label_buffer else 0)

    def cut(self, batch: Batch, rng: np.random.Generator) -> Iterator[Batch]:
        yield from super().cut(batch, rng)
        if self.label_buffer is not None:
            updates = range(self.label_buffer.updates)
            drawn = [self.label_buffer.draw(batch, rng, self._accumulate) for _ in updates]
            yield from self._stamped(drawn, [torch.arange(len(labels)) for labels in drawn], rng)

    # ---- evaluation

    def val_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(VALIDATION)

    def test_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(TEST)

    def predict_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(TEST)

    # ---- checkpoint

    def rank_state(self) -> dict[str, Any]:
        return {} if self.label_buffer is None else {"label_buffer": self.label_buffer.state_dict()}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        if self.label_buffer is not None:
            self.label_buffer.load_state_dict(state["label_buffer"])
