"""Rows of a file are measured as they are learned from: by the terms of the loss, on rows that were held out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchmetrics import MeanMetric

from lightning_nlf.batch import Batch
from lightning_nlf.functional import row_counts
from lightning_nlf.objective import Objective


class HeldOutObjective(Objective):
    """Logs terms and notes of evaluation batches without rewards, each a mean over all that it is a mean over in
    training, however the rows were cut into batches and ranks.

    What a row needs before there are terms of it, `complete` adds, in training and here.
    """

    measured: tuple[str, ...] = ()  # the names of these terms and notes

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.on_held_out = nn.ModuleDict({name: MeanMetric() for name in self.measured})

    def complete(self, batch: Batch) -> Batch:
        """The rows with all that `terms` asks for; cooperative, as `prepare` is, but nothing is counted."""
        return batch

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        return self.complete(super().prepare(batch))

    def held_out_metrics(self) -> tuple[str, ...]:
        return self.measured

    def measure(self, stage: str, batch: Batch, loader: int) -> None:
        if batch.rewards is not None:
            return super().measure(stage, batch, loader)
        batch = self.complete(batch)
        now = self.evaluate(batch)
        said = self.terms(batch, now) | now.notes
        counts = row_counts(batch)
        for name in self.measured:
            metric = self.on_held_out[name]
            assert isinstance(metric, MeanMetric)
            metric.update(said[name], counts[now.over[name]].sum())
            self.log(f"{stage}/{name}", metric, batch_size=len(batch), add_dataloader_idx=False)
