"""The frozen policy that others are compared with: where the run started from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import on_every_row, row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.networks import Policy
from lightning_nlf.objective import Objective, scattered
from lightning_nlf.objectives.reference_cache import LogProbCache, digest, row_keys, settings
from lightning_nlf.private_names import trainer_of

CHUNK = 64  # rows at a time: the logits of a whole collection would not fit


class ReferenceObjective(Objective):
    """The frozen reference policy: adds `ref_log_probs` at the steps that are read, if they are not there.

    The reference is the policy as it was built: from `weights`, or at random from the seed. It is not saved; its
    digest is, and a run that would resume with another is refused. A row that comes again, as those of a file do in
    every epoch, is not read again.

    Samples of an evaluation are measured by it, as `kl`: log π(y|x) − log π_ref(y|x), whose mean is KL(π ‖ π_ref).

    Args:
        reference_cache: folder for what the reference said of each row, one file per reference: for rows that come
            again in another run. Without it that is known within the run only.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    policy: Policy
    rows_come_again = True  # else they are remembered in a `reference_cache` only

    def __init__(self, reference_cache: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # In a list: no child of the module, so neither saved nor trained, nor given to DDP.
        self._frozen = [self.policy.frozen()]
        self._reference_digest = digest(self._frozen[0])
        self._reference_settings = settings(self._frozen[0])
        self.reference_cache = reference_cache
        self._cache: LogProbCache | None = None
        self._trained_against: str | None = None  # the digest that a checkpoint has

    @property
    def reference(self) -> Policy:
        return self._frozen[0]

    def refer(self, batch: Batch) -> Batch:
        """`ref_log_probs` at the steps that are read."""
        if batch.ref_log_probs is not None:
            return batch
        return replace(batch, ref_log_probs=self.reference_log_probs(batch, self.read_steps(batch)))

    @torch.no_grad()
    def reference_log_probs(self, batch: Batch, where: Tensor) -> Tensor:
        if not self.rows_come_again and self.reference_cache is None:
            return self._read_anew(batch, where)
        trainer = trainer_of(self)
        precision = "32-true" if trainer is None else trainer.precision
        keys = row_keys(batch, where, f"{precision} {self._reference_settings}")
        if self._cache is None:
            folder, file = self.reference_cache, f"{self._reference_digest}.safetensors"
            self._cache = LogProbCache(None if folder is None else Path(folder) / file)
        unread = torch.tensor([row for row, key in enumerate(keys) if key not in self._cache], dtype=torch.long)
        for part in self.reading_parts(where[unread], CHUNK) if len(unread) else ():
            rows = unread[part.cpu()]
            log_probs = self._read_reference(batch, rows, where)
            for row, x in zip(rows.tolist(), log_probs.cpu().split(where[rows].sum(1).tolist()), strict=True):
                self._cache[keys[row]] = x.clone()  # a view would keep the whole chunk
        log_probs = torch.cat([self._cache[key] for key in keys])
        self._cache.settle()
        return scattered(log_probs.to(batch.obs.device), where)

    def _read_anew(self, batch: Batch, where: Tensor) -> Tensor:
        parts = self.reading_parts(where, CHUNK)
        log_probs = [scattered(self._read_reference(batch, rows, where), where[rows]) for rows in parts]
        return torch.cat(log_probs)[torch.cat(parts).argsort()]

    def _read_reference(self, batch: Batch, rows: Tensor, where: Tensor) -> Tensor:
        """log π_ref (N,) at the True steps of `where` in `rows`."""
        if not len(rows):
            return torch.empty(0)
        self._frozen[0] = self.reference.to(batch.obs.device)
        steps = where[rows]
        with self.acting():
            return self.reference(batch.obs[rows], steps).log_prob(batch.actions[rows][steps])

    def episode_metrics(self, batch: Batch, sampled: bool) -> dict[str, Tensor]:
        """`kl` of sampled replies; none of greedy ones, which are no samples of the policy."""
        if not sampled or batch.log_probs is None or not self._is_the_start():
            return {}
        log_ratio = batch.log_probs - self._read_anew(batch, self.read_steps(batch))
        return {"kl": on_every_row(row_sums(log_ratio, batch.mask), batch)}

    def _is_the_start(self) -> bool:
        """Whether the reference is that of the checkpoint, if one was loaded."""
        if self._trained_against in (None, self._reference_digest):
            return True
        rank_zero_warn(
            "no kl: the checkpoint was trained against another reference; keep `policy.weights` (and the seed)"
        )
        return False

    def save(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["reference_digest"] = self._reference_digest

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError: training would go on against another reference."""
        self._trained_against = checkpoint.get("reference_digest")
        trainer = trainer_of(self)
        if trainer is None or trainer.state.fn != "fit":
            return
        if self._trained_against != self._reference_digest:
            raise ValueError(
                "the reference is another one than when the run began: keep `policy.weights` (and the seed)"
            )
