"""Estimate of the memory for training: weights, gradients, Adam's moments, and activations of one micro-batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_nlf.data_source import DataSource
from lightning_nlf.networks import Network

BYTES = 4  # bytes of a float32 number


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training needs in addition to the memory in use. The estimate tends to be too low.

    Args:
        weights: bytes of weights that are not loaded yet.
        trained: bytes of the gradient and two moments of each trained parameter.
        activations: bytes of the activations of the rows that are read at a time.
    """

    weights: int
    trained: int
    activations: int

    @classmethod
    def of(cls, networks: Iterable[Network], rows: int, tokens: int) -> TrainingMemory:
        """Estimate for these networks.

        Args: rows: number of rows that are read at a time; tokens: number of tokens in each row.
        """
        parameters = [p for network in networks for p in network.parameters()]
        unread = sum(p.numel() for p in parameters if p.is_meta)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        kept_per_token = sum(network.kept_per_token for network in networks)
        return cls(BYTES * unread, BYTES * 3 * trained, BYTES * kept_per_token * rows * tokens)

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations


def check_memory(networks: Iterable[Network], source: DataSource, device: torch.device) -> None:
    """Warn, before the first step, if training on a CPU needs more memory than is available, and name knobs that help.

    Assumes one row at a time if neither `rows_per_batch` nor `tokens_per_batch` is set.

    Raises:
        ValueError: training needs more memory than the machine has.
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
        f"memory: training needs about {gibibytes(needed.total)} GiB more ({weights}{gibibytes(needed.trained)} for "
        f"gradients and Adam, {gibibytes(needed.activations)} for {read}), but this machine has "
        f"{gibibytes(memory.available)} GiB available of {gibibytes(memory.total)}. To use less, set "
        "data.rows_per_batch (fewer rows at a time), policy.checkpoint_activations: true, or policy.lora"
    )
    if needed.total > memory.total + swap.total:
        raise ValueError(text)
    rank_zero_warn(text)


def gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f}"
