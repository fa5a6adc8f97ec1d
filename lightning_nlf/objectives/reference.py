"""The frozen policy that others are compared with: where the run started from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import on_every_row, row_sums
from lightning_nlf.networks import Policy
from lightning_nlf.objective import Objective, scattered
from lightning_nlf.objectives.reference_cache import LogProbCache, digest, row_keys, settings


class ReferenceObjective(Objective):
    """Adds the `ref_log_probs` of the learner's and the expert's steps to what is prepared, if they are not there.

    The reference is the policy as it was built: from `weights`, or at random from the seed. It is not saved; its
    digest is, and a run that would resume with another is refused. A row that comes again, as those of a file do in
    every epoch, is not read again.

    Samples of an evaluation are measured by it, as `kl`: log π(y|x) − log π_ref(y|x), whose mean is KL(π ‖ π_ref).

    Args:
        reference_cache: folder for what the reference said of each row, one file per reference: for rows that come
            again in another run. Without it that is known within the run only.
    """

    policy: Policy
    CHUNK = 64  # rows at a time: the logits of a whole collection would not fit

    def __init__(self, reference_cache: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # In a list: no child of the module, so neither saved nor trained, nor given to DDP.
        self._frozen = [self.policy.frozen()]
        self._reference_digest = digest(self._frozen[0])
        self._reference_settings = settings(self._frozen[0])
        self.reference_cache = reference_cache
        self._known: LogProbCache | None = None
        self._trained_against: str | None = None  # the digest that a checkpoint has

    @property
    def reference(self) -> Policy:
        return self._frozen[0]

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        return self.with_reference(super().prepare(batch))

    def with_reference(self, batch: Batch) -> Batch:
        """With `ref_log_probs`, if they are not there."""
        return batch if batch.ref_log_probs is not None else replace(batch, ref_log_probs=self.referred(batch))

    @torch.no_grad()
    def referred(self, batch: Batch) -> Tensor:
        """log π_ref(a|s) on `mask` and `expert_mask`, (B, T); 0 elsewhere."""
        where = batch.mask if batch.expert_mask is None else batch.mask | batch.expert_mask
        precision = "32-true" if self._trainer is None else self._trainer.precision
        keys = row_keys(batch, where, f"{precision} {self._reference_settings}")
        if self._known is None:
            folder = self.reference_cache
            self._known = LogProbCache(None if folder is None else Path(folder) / f"{self._reference_digest}.pt")
        unknown = torch.tensor([row for row, key in enumerate(keys) if key not in self._known], dtype=torch.long)
        for rows in unknown.split(self.CHUNK):
            log_probs = self._read_reference(batch, rows, where)
            for row, own in zip(rows.tolist(), log_probs.cpu().split(where[rows].sum(1).tolist()), strict=True):
                self._known[keys[row]] = own.clone()  # a view would keep the whole chunk
        known = torch.cat([self._known[key] for key in keys])
        self._known.settle()
        return scattered(known.to(batch.obs.device), where)

    @torch.no_grad()
    def read_anew(self, batch: Batch) -> Tensor:
        """The same of rows that hardly come again, (B, T): nothing is remembered."""
        where = batch.mask if batch.expert_mask is None else batch.mask | batch.expert_mask
        chunks = torch.arange(len(batch)).split(self.CHUNK)
        return scattered(torch.cat([self._read_reference(batch, rows, where) for rows in chunks]), where)

    def _read_reference(self, batch: Batch, rows: Tensor, where: Tensor) -> Tensor:
        """log π_ref (N,) at the True steps of `where` in `rows`."""
        if not len(rows):
            return torch.empty(0)
        self._frozen[0] = self.reference.to(batch.obs.device)
        own = where[rows]
        with self.acting():
            return self.reference(batch.obs[rows], own).log_prob(batch.actions[rows][own])

    def measure(self, stage: str, batch: Batch, loader: int) -> None:
        """Of what the policy's mode says no KL: it is no sample of the policy."""
        if loader == 1 and batch.rewards is not None and batch.log_probs is not None and self._is_the_start():
            log_ratio = row_sums(batch.log_probs - self.read_anew(batch), batch.mask)
            batch = replace(batch, extra=batch.extra | {"kl": on_every_row(log_ratio, batch)})
        super().measure(stage, batch, loader)

    def _is_the_start(self) -> bool:
        """Whether the reference is that of the checkpoint, if one was loaded."""
        if self._trained_against in (None, self._reference_digest):
            return True
        rank_zero_warn(
            "no kl: the checkpoint was trained against another reference; keep `policy.weights` (and the seed)"
        )
        return False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference_digest"] = self._reference_digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError: training would go on against another reference."""
        super().on_load_checkpoint(checkpoint)
        self._trained_against = checkpoint.get("reference_digest")
        if self._trainer is None or self._trainer.state.fn != "fit":
            return
        if self._trained_against != self._reference_digest:
            raise ValueError(
                "the reference is another one than when the run began: keep `policy.weights` (and the seed)"
            )
