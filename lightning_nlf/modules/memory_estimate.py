"""Memory that a training needs at least: weights, gradients, Adam's moments, and activations of one micro-batch."""

from __future__ import annotations

from collections.abc import Iterable

import psutil
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_nlf.data_source import DataSource
from lightning_nlf.networks import Network

BYTES = 4  # of a number in float32


def training_bytes(networks: Iterable[Network], rows: int, tokens: int) -> tuple[int, int]:
    """What is needed beside the weights, of what learns and of the activations, while `rows` rows of `tokens` are read.

    A gradient and two moments of each parameter that learns. An estimate, and rather too low.
    """
    learned = sum(p.numel() for network in networks for p in network.parameters() if p.requires_grad)
    kept = sum(network.kept_per_token for network in networks)
    return BYTES * 3 * learned, BYTES * kept * rows * tokens


def warn_of_memory(networks: Iterable[Network], source: DataSource, device: torch.device) -> None:
    """Warns, before the first step, that a training on a CPU needs more memory than there is, and which knobs help.

    Rows without a limit are counted as one.
    """
    networks = list(networks)
    tokens = source.longest_row
    if device.type != "cpu" or tokens is None:
        return
    rows = source.rows_per_batch or max(1, (source.tokens_per_batch or 0) // tokens)
    learned, activations = training_bytes(networks, rows, tokens)
    available = psutil.virtual_memory().available
    if learned + activations <= available:
        return
    read = f"{rows} row{'s' if rows > 1 else ''} of up to {tokens} tokens"
    rank_zero_warn(
        f"memory: training needs about {(learned + activations) / 2**30:.1f} GiB more, {learned / 2**30:.1f} for "
        f"gradients and Adam and {activations / 2**30:.1f} for {read}, and this machine has {available / 2**30:.1f} "
        "left. Less takes: data.rows_per_batch (fewer rows at a time), policy.checkpoint_activations: true, or "
        "policy.lora of HuggingFacePolicy"
    )
