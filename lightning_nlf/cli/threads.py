"""Number of threads that torch uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 100_000  # parameters; a network with two hidden layers of 256 has 70,000


@contextmanager
def fitting(network: nn.Module) -> Iterator[None]:
    """Context manager that limits torch to one thread for a network of at most SMALL parameters.

    For such a network, a second thread costs more than it saves. The simulator's threads are not affected. Does nothing
    if OMP_NUM_THREADS is set.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ and sum(x.numel() for x in network.parameters()) <= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
