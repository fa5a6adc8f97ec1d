"""Whether what is said to be likely happens so often."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Reliability(Metric):
    """Expected calibration error, Σ_b n_b/N |mean probability − rate of events| over bins of equal width.

    That of torchmetrics, in constant memory: Guo et al. 2017, https://arxiv.org/abs/1706.04599, eq. 3. NaN of nothing.

    Args: bins: of the probabilities from 0 to 1.
    """

    full_state_update = False
    probabilities: Tensor  # (bins,) sums
    events: Tensor  # (bins,)
    counts: Tensor  # (bins,)

    def __init__(self, bins: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("probabilities", "events", "counts"):
            self.add_state(name, torch.zeros(bins), dist_reduce_fx="sum")
        self.table = torch.zeros(0, 3)  # (used bins, 3): mean probability, rate, number; as it was last computed

    def update(self, probability: Tensor, event: Tensor) -> None:
        """probability (N,) in [0, 1]; event (N,) 0 or 1."""
        bins = len(self.counts)
        place = (probability * bins).long().clamp(max=bins - 1)
        self.probabilities.index_add_(0, place, probability)
        self.events.index_add_(0, place, event.to(probability.dtype))
        self.counts.index_add_(0, place, torch.ones_like(probability))

    def compute(self) -> Tensor:
        used = self.counts > 0
        counts = self.counts[used]
        said, happened = self.probabilities[used] / counts, self.events[used] / counts
        self.table = torch.stack([said, happened, counts], 1).cpu()
        return (counts * (said - happened).abs()).sum() / counts.sum()

    def markdown(self) -> str:
        """The table as it was last computed, a line a bin."""
        lines = ["| said to be likely | happened | how often said |", "| ---: | ---: | ---: |"]
        lines += [f"| {said:.3f} | {happened:.3f} | {count:.0f} |" for said, happened, count in self.table.tolist()]
        return "\n".join(lines) + "\n"
