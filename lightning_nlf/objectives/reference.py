"""The frozen policy that others are compared with: where the run started from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.networks import Policy
from lightning_nlf.objective import Objective, scattered


class ReferenceObjective(Objective):
    """Adds the `ref_log_probs` of the learner's and the expert's steps to what is prepared, if they are not there.

    The reference is the policy as it was built: from `weights`, or at random from the seed. It is not saved; its
    digest is, and a run that would resume with another is refused.
    """

    policy: Policy
    CHUNK = 64  # rows at a time: the logits of a whole collection would not fit

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # In a list: no child of the module, so neither saved nor trained, nor given to DDP.
        self._frozen = [self.policy.frozen()]
        self._reference_digest = digest(self._frozen[0])

    @property
    def reference(self) -> Policy:
        return self._frozen[0]

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        batch = super().prepare(batch)
        return batch if batch.ref_log_probs is not None else replace(batch, ref_log_probs=self.referred(batch))

    def referred(self, batch: Batch) -> Tensor:
        """log π_ref(a|s) on `mask` and `expert_mask`, (B, T); 0 elsewhere."""
        self._frozen[0] = self.reference.to(batch.obs.device)
        where = batch.mask if batch.expert_mask is None else batch.mask | batch.expert_mask
        parts = []
        with self.acting():
            for first in range(0, len(batch), self.CHUNK):
                rows = slice(first, first + self.CHUNK)
                own = where[rows]
                log_probs = self.reference(batch.obs[rows], own).log_prob(batch.actions[rows][own])
                parts.append(scattered(log_probs, own))
        return torch.cat(parts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference_digest"] = self._reference_digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError: training would go on against another reference."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is None or self._trainer.state.fn != "fit":
            return
        if checkpoint.get("reference_digest") != self._reference_digest:
            raise ValueError(
                "the reference is another one than when the run began: keep `policy.weights` (and the seed)"
            )


def digest(network: torch.nn.Module) -> str:
    """SHA-256 of the names, shapes and values of all parameters and buffers."""
    total = hashlib.sha256()
    for name, x in network.state_dict().items():
        total.update(f"{name}{tuple(x.shape)}{x.dtype}".encode())
        total.update(x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
