"""Fingerprint of trained parameters, to notice that they have changed."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # integer type by bytes of an element


@torch.no_grad()
def fingerprint(network: nn.Module) -> bytes:
    """A digest that changes whenever a trained parameter changes: 32 bytes.

    The bit patterns of each tensor are summed on its device, so the cost is that of one pass over the parameters.
    Exchanged entries of one tensor go unnoticed; an optimizer step, a checkpoint or an average does not.
    """
    sums = [
        p.detach().view(BITS[p.element_size()]).sum(dtype=torch.int64) for p in network.parameters() if p.requires_grad
    ]
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for total in sums:
        by_device.setdefault(total.device, []).append(total)
    digest = hashlib.sha256()
    for totals in by_device.values():
        digest.update(repr(torch.stack(totals).tolist()).encode())
    return digest.digest()
