"""What a mixin may say of a batch, and what it may use to say it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import Tensor
from torch.distributions import Distribution

from lightning_nlf.batch import Batch

Terms = dict[str, Tensor]


@dataclass
class Evaluation:
    """What the current networks say of a batch, computed once a step and shared by all terms."""

    where: Tensor  # (B, T) bool: the N steps that were evaluated
    distribution: Distribution  # of batch shape (N,)
    log_probs: Tensor  # (B, T) of `batch.actions`; 0 elsewhere
    values: Tensor | None  # (B, T); 0 elsewhere
    notes: dict[str, Tensor] = field(default_factory=dict)  # what a mixin wants logged beside its terms
    over: dict[str, str] = field(default_factory=dict)  # the mask in `Batch.totals` that a term or note is a mean over

    @cached_property
    def entropy(self) -> Tensor:  # (B, T)
        return self.scatter(self.distribution.entropy())

    def scatter(self, x: Tensor) -> Tensor:
        """x (N,) → (B, T), 0 where nothing was evaluated."""
        return scattered(x, self.where)


def scattered(x: Tensor, where: Tensor) -> Tensor:
    """x (N,) at the N True steps of `where` (B, T), 0 elsewhere.  (B, T)"""
    return torch.zeros(where.shape, dtype=x.dtype, device=x.device).masked_scatter(where, x)


class Objective(L.LightningModule if TYPE_CHECKING else object):  # type: ignore[misc]
    """What a mixin may say. Each method is cooperative: it calls `super()` and adds its own."""

    experience: Tensor  # () float64: steps decided so far, by all ranks; the clock of schedules
    held_out_losses: tuple[str, ...] = ()  # of `held_out_metrics`; the first that is a number says which model is best

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        """The loss terms, each (), by the name they are logged under."""
        return {}

    def prepare(self, batch: Batch) -> Batch:
        """What is computed once per collection, without gradients."""
        return batch

    def advance(self) -> None:
        """What moves after each optimizer step. Whatever moves is a buffer, so that the checkpoint has it."""

    def critic(self, batch: Batch, where: Tensor, features: Tensor | None = None) -> Tensor | None:
        """Values (N,) of the N steps of `where`, if there is a network for them.

        Args: features: the policy's (N, d), where they are known already.
        """
        return None

    def measure(self, stage: str, batch: Batch, loader: int) -> None:
        """Logs what an evaluation batch says of the networks, as `stage/…`; `loader` says of which loader."""
        raise NotImplementedError

    def held_out_metrics(self) -> tuple[str, ...]:
        """The names under which `measure` may log held-out rows, without the stage; none where it is not known."""
        return ()

    # ---- what it may use

    def evaluate(self, batch: Batch) -> Evaluation:
        """What the networks say of a batch."""
        raise NotImplementedError

    def note(self, name: str, x: Tensor, counts: bool = True) -> None:
        """Have x () logged as `train/name`, in the mean of what is noted until the next logging."""

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """Σ x over the ranks of the Trainer; x itself without one."""
        trainer = self._trainer
        return x if trainer is None or trainer.world_size == 1 else trainer.strategy.reduce(x, reduce_op="sum")

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Eval mode and the Trainer's precision: dropout or another dtype would break "the ratio is 1".

        Inside, nothing learns: weights are rounded to half precision once, not for every token.
        """
        if self.training:
            self.eval()
        if self._trainer is None:
            yield
            return
        with self._trainer.precision_plugin.forward_context():
            before = torch.is_autocast_cache_enabled()
            torch.set_autocast_cache_enabled(True)
            try:
                yield
            finally:
                torch.set_autocast_cache_enabled(before)
                torch.clear_autocast_cache()  # made without gradients: not for who learns in the same context
