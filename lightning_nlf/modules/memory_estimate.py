"""Memory that a training needs at least: weights, gradients, Adam's moments, and activations of one micro-batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_nlf.data_source import DataSource
from lightning_nlf.networks import Network

BYTES = 4  # of a number in float32


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a training needs beside what is in memory already. An estimate, and rather too low.

    Args:
        weights: of networks whose numbers are not read yet.
        learned: a gradient and two moments of each parameter that learns.
        activations: of the rows that are read at a time.
    """

    weights: int
    learned: int
    activations: int

    @classmethod
    def of(cls, networks: Iterable[Network], rows: int, tokens: int) -> TrainingMemory:
        """Args: rows: that are read at a time; tokens: of each of them."""
        parameters = [p for network in networks for p in network.parameters()]
        unread = sum(p.numel() for p in parameters if p.is_meta)
        learned = sum(p.numel() for p in parameters if p.requires_grad)
        kept = sum(network.kept_per_token for network in networks)
        return cls(BYTES * unread, BYTES * 3 * learned, BYTES * kept * rows * tokens)

    @property
    def total(self) -> int:
        return self.weights + self.learned + self.activations


def check_memory(networks: Iterable[Network], source: DataSource, device: torch.device) -> None:
    """Warns, before the first step, that a training on a CPU needs more memory than is left, and which knobs help.

    Where neither `rows_per_batch` nor `tokens_per_batch` is set, one row at a time is assumed.

    Raises:
        ValueError: it needs more than the machine has.
    """
    tokens = source.longest_row
    if device.type != "cpu" or tokens is None:
        return
    rows = source.rows_per_batch or max(1, (source.tokens_per_batch or 0) // tokens)
    needed = TrainingMemory.of(list(networks), rows, tokens)
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    if needed.total <= memory.available:
        return
    read = f"{rows} row{'s' if rows > 1 else ''} of up to {tokens} tokens"
    weights = f"{gibibytes(needed.weights)} for weights, " if needed.weights else ""
    text = (
        f"memory: training needs about {gibibytes(needed.total)} GiB more, {weights}{gibibytes(needed.learned)} for "
        f"gradients and Adam and {gibibytes(needed.activations)} for {read}, and this machine has "
        f"{gibibytes(memory.available)} left of {gibibytes(memory.total)}. Less takes: data.rows_per_batch (fewer rows "
        "at a time), policy.checkpoint_activations: true, or policy.lora"
    )
    if needed.total > memory.total + swap.total:
        raise ValueError(text)
    rank_zero_warn(text)


def gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f}"
