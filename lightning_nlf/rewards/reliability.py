"""Calibration of probabilities: expected calibration error and the reliability table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Reliability(Metric):
    """Expected calibration error, Σ_b n_b/N |mean probability − rate of events| over bins of equal width.

    Source: eq. 3 of Guo et al. 2017, https://arxiv.org/abs/1706.04599. The value equals that of torchmetrics, but needs
    only constant memory. It is NaN without samples.

    Args: bins: number of bins between 0 and 1.
    """

    full_state_update = False
    probabilities: Tensor  # (bins,) sum of the probabilities in each bin
    events: Tensor  # (bins,) number of events in each bin
    counts: Tensor  # (bins,) number of samples in each bin

    def __init__(self, bins: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("probabilities", "events", "counts"):
            self.add_state(name, torch.zeros(bins), dist_reduce_fx="sum")
        self.table = torch.zeros(0, 3)  # (used bins, 3): mean probability, rate, count; from the last `compute`

    def update(self, probability: Tensor, event: Tensor) -> None:
        """Add samples: probability (N,) in [0, 1]; event (N,) 0 or 1."""
        bins = len(self.counts)
        place = (probability * bins).long().clamp(max=bins - 1)
        self.probabilities.index_add_(0, place, probability)
        self.events.index_add_(0, place, event.to(probability.dtype))
        self.counts.index_add_(0, place, torch.ones_like(probability))

    def compute(self) -> Tensor:
        used = self.counts > 0
        counts = self.counts[used]
        predicted, observed = self.probabilities[used] / counts, self.events[used] / counts
        self.table = torch.stack([predicted, observed, counts], 1).cpu()
        return (counts * (predicted - observed).abs()).sum() / counts.sum()

    def markdown(self) -> str:
        """The reliability table of the last `compute` in Markdown, one line per bin."""
        lines = ["| predicted probability | observed rate | count |", "| ---: | ---: | ---: |"]
        lines += [f"| {mean:.3f} | {rate:.3f} | {count:.0f} |" for mean, rate, count in self.table.tolist()]
        return "\n".join(lines) + "\n"
