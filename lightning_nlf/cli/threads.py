"""How many threads torch computes with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 100_000  # parameters; those of two hidden layers of 256 are 70,000


@contextmanager
def fitting(network: nn.Module) -> Iterator[None]:
    """One thread for a small network: what a second brings to it is less than what calling it costs. The simulator has
    threads of its own. OMP_NUM_THREADS decides where it is set.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ and sum(x.numel() for x in network.parameters()) <= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
