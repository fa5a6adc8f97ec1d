"""Frozen reference policy for DPO, KTO and KL penalties: the policy at the start of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from lightning_nlf.objectives.frozen_start import FrozenStart, StartIsGone
from lightning_nlf.objectives.reference_cache import LogProbCache, row_keys, settings
from lightning_nlf.private_names import trainer_of

CHUNK = 64  # rows at a time, because the logits of a whole collection would not fit in memory


class ReferenceObjective(Objective):
    """Frozen reference policy: adds `ref_log_probs` at the evaluated steps, unless the batch has them.

    The reference is the policy as it was built: from `weights`, or at random from the seed. A checkpoint contains only
    its digest, and a run cannot be resumed with a different reference. Rows that repeat in every epoch, such as the
    rows of a file, are evaluated once. If the reference comes from a model folder, its weights are in memory only while
    rows are evaluated.

    An evaluation logs `kl`, the log-ratio log π(y|x) − log π_ref(y|x) of sampled replies. Its mean estimates KL(π ‖
    π_ref).

    Args:
        reference_cache: folder that caches the reference's log-probabilities, one file per reference, for rows that
            repeat in another run. By default the log-probabilities are only cached within the run.
    """

    needs: tuple[type, ...] = (PolicyModule,)
    policy: Policy
    rows_come_again = True  # whether rows repeat; if False, rows are cached only with `reference_cache`

    def __init__(self, reference_cache: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._start = FrozenStart(self.policy)  # not a child module, so that it is not saved, trained, or given to DDP
        self._reference_settings = settings(self.reference)
        self.reference_cache = reference_cache
        self._cache: LogProbCache | None = None
        self._trained_against: str | None = None  # digest of the reference in a loaded checkpoint

    @property
    def reference(self) -> Policy:
        """The reference policy. Its weights are only available inside `FrozenStart.reading`."""
        return self._start.network

    @property
    def _reference_digest(self) -> str:
        return self._start.digest

    @property
    def _rows_are_kept(self) -> bool:
        return self.rows_come_again or self.reference_cache is not None

    def refer(self, batch: Batch) -> Batch:
        """Add `ref_log_probs` at the evaluated steps."""
        if batch.ref_log_probs is not None:
            return batch
        return replace(batch, ref_log_probs=self.reference_log_probs(batch, self.read_steps(batch)))

    @torch.no_grad()
    def reference_log_probs(self, batch: Batch, where: Tensor) -> Tensor:
        if not self._rows_are_kept:
            return self._read_anew(batch, where)
        trainer = trainer_of(self)
        precision = "32-true" if trainer is None else trainer.precision
        keys = row_keys(batch, where, f"{precision} {self._reference_settings}")
        if self._cache is None:
            folder = self.reference_cache
            path = None if folder is None else Path(folder) / f"{self._reference_digest}.safetensors"
            self._cache = LogProbCache(path)
        unread = torch.tensor([row for row, key in enumerate(keys) if key not in self._cache], dtype=torch.long)
        parts = [unread[part.cpu()] for part in self.reading_parts(where[unread], CHUNK)] if len(unread) else []
        for rows, log_probs in zip(parts, self._read_reference(batch, parts, where), strict=True):
            for row, x in zip(rows.tolist(), log_probs.cpu().split(where[rows].sum(1).tolist()), strict=True):
                self._cache[keys[row]] = x.clone()  # a view would keep the whole chunk in memory
        log_probs = torch.cat([self._cache[key] for key in keys])
        self._cache.settle()
        return scattered(log_probs.to(batch.obs.device), where)

    def _read_anew(self, batch: Batch, where: Tensor) -> Tensor:
        parts = self.reading_parts(where, CHUNK)
        by_part = zip(parts, self._read_reference(batch, parts, where), strict=True)
        log_probs = [scattered(x, where[rows]) for rows, x in by_part]
        return torch.cat(log_probs)[torch.cat(parts).argsort()]

    def _read_reference(self, batch: Batch, parts: Sequence[Tensor], where: Tensor) -> Iterator[Tensor]:
        """For each of the `parts` of the rows, log π_ref (N,) at the True steps of `where`."""
        if not any(map(len, parts)):
            yield from (torch.empty(0) for _ in parts)
            return
        with self._start.reading(batch.obs.device, keep=not self._rows_are_kept) as reference:
            for rows in parts:
                steps = where[rows]
                with self.acting():
                    log_probs = reference(batch.obs[rows], steps).log_prob(batch.actions[rows][steps])
                yield log_probs

    def episode_metrics(self, batch: Batch, sampled: bool) -> dict[str, Tensor]:
        """The `kl` of sampled replies. Greedy replies have no `kl`, because they are not samples from the policy.

        `kl` is NaN if the reference can no longer be read, so that training can go on.
        """
        if not sampled or batch.log_probs is None or not self._is_the_start():
            return {}
        try:
            log_ratio = batch.log_probs - self._read_anew(batch, self.read_steps(batch))
        except StartIsGone as error:
            rank_zero_warn(f"kl is not logged: {error}")
            return {"kl": torch.full((len(batch),), torch.nan, device=batch.obs.device)}
        return {"kl": on_every_row(row_sums(log_ratio, batch.mask), batch)}

    def _is_the_start(self) -> bool:
        """Whether the reference is the same as in the loaded checkpoint, if any. Warns if it differs."""
        if self._trained_against is None or self._trained_against == self._reference_digest:
            return True
        rank_zero_warn(
            "kl is not logged: the checkpoint was trained with another reference; use its `policy.weights` and seed"
        )
        return False

    def save(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["reference_digest"] = self._reference_digest

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Read the digest of the reference. Raises ValueError: training would resume with a different reference."""
        self._trained_against = checkpoint.get("reference_digest")
        trainer = trainer_of(self)
        if trainer is None or trainer.state.fn != "fit":
            return
        if self._trained_against != self._reference_digest:
            raise ValueError(
                "the reference differs from that of the checkpoint; set the same `policy.weights` and seed as before"
            )
