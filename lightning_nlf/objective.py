"""The contract of an objective: hooks that prepare a batch in named phases, and terms that make the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torch.distributions import Distribution
from torchmetrics import MeanMetric

from lightning_nlf.batch import Batch
from lightning_nlf.compatibility import refuse_clashes, refuse_excluded, refuse_missing, refuse_misspelt
from lightning_nlf.data_source import data_source
from lightning_nlf.maths.parts import parts_of, row_lengths
from lightning_nlf.private_names import trainer_of

PHASES = ("annotate", "select", "masks", "refer", "shape_rewards", "credit", "reweigh")  # of a training collection
HELD_OUT_PHASES = ("annotate", "masks", "refer")  # of rows that are only measured
HOOKS = (*PHASES, "terms", "measure", "episode_metrics", "advance", "save", "load")


@dataclass(frozen=True)
class Term:
    """One part of a loss, or a figure beside it: values that the module takes the mean of, weighs, sums and logs.

    `train/<name>` is the weighted mean, `val/<name>` the mean without the weight.
    """

    name: str
    value: Tensor  # (B, T) steps, (B,) rows, (P,) pairs or (G,) rankings, not averaged; () where `over` is None
    # Its mask: `mask` (the learner's steps), `expert_mask`, `valid`, or a name in `batch.masks`, (B, T) of steps or
    # (B,) of rows; or `pairs`, `strict_pairs`, `rankings`. None: a number of its own, added unless `logged_only`.
    over: str | None
    per: str | None = None  # what the sum is divided by, where it is not the count of `over`
    weight: float | Tensor = 1.0
    logged_only: bool = False  # a figure, and no part of the loss


@dataclass
class Evaluation:
    """Outputs of the current networks on a batch, computed once a step and shared by all terms."""

    where: Tensor  # (B, T) bool: the N steps that were evaluated
    distribution: Distribution  # of batch shape (N,)
    log_probs: Tensor  # (B, T) of `batch.actions`; 0 elsewhere
    values: Tensor | None  # (B, T); 0 elsewhere

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
    """Base of the mixins: the hooks that one may define. The module calls each mixin's own, once a phase.

    A hook never calls `super()`. Within a phase the mixins run from the rightmost base to the leftmost. Two mixins
    that share the name of a knob or a method are refused when a class is made of both (`compatibility`).
    """

    needs: tuple[type, ...] = ()  # classes that must stand to the right of this one
    excludes: tuple[type, ...] = ()  # mixins that it cannot be combined with

    experience: Tensor  # () float64: decisions so far, by all ranks; the clock of schedules
    reports: tuple[str, ...] = ()  # names of its terms of held-out rows
    measures: tuple[str, ...] = ()  # names that `measure` logs of them

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        mixins = [mixin for mixin in cls.__mro__ if issubclass(mixin, Objective) and mixin is not Objective]
        mixins = [mixin for mixin in mixins if not issubclass(mixin, L.LightningModule)]
        refuse_clashes(cls, mixins, (*HOOKS, "reports", "measures", "needs", "excludes"))
        refuse_excluded(cls, mixins)
        refuse_misspelt(cls, Objective, HOOKS)
        if issubclass(cls, L.LightningModule):
            refuse_missing(cls, mixins)

    # ---- the phases of a collection, without gradients

    def annotate(self, batch: Batch) -> Batch:
        """1. Add what rows lack: ranks, labels, views. Held-out rows pass it too."""
        return batch

    def select(self, batch: Batch) -> Batch:
        """2. Choose what is learned from: rejection, filtering."""
        return batch

    def masks(self, batch: Batch) -> Batch:
        """3. Name what terms are means over: `return batch.with_masks(name=…)`, (B, T) of steps or (B,) of rows.

        A policy is read at `mask`, `expert_mask` and every named mask of steps; a mask of rows reads nothing more.
        Held-out rows pass it too, and may lack a field, such as rewards: leave the mask out then, and have `terms`
        raise MissingField by `required(batch.masks.get(name), "…")`.
        """
        return batch

    def refer(self, batch: Batch) -> Batch:
        """4. Add what a frozen network says of the steps that are read. Held-out rows pass it too."""
        return batch

    def shape_rewards(self, batch: Batch) -> Batch:
        """5. Clip, penalise, whiten the rewards.

        A KL penalty clips and logs `train/score` as rewards come in: what changes the raw reward stands to its right.
        """
        return batch

    def credit(self, batch: Batch) -> Batch:
        """6. Returns and advantages."""
        return batch

    def reweigh(self, batch: Batch) -> Batch:
        """7. Change the advantages, or weigh steps."""
        return batch

    # ---- each micro-batch

    def terms(self, batch: Batch, now: Evaluation) -> Iterable[Term]:
        """The loss terms and figures of a micro-batch, or of held-out rows: `yield Term(…)`.

        Raises: MissingField: the batch lacks a field; held-out rows then have none of this mixin's terms.
        """
        return ()

    def measure(self, stage: str, batch: Batch, now: Evaluation) -> None:
        """Log metrics of held-out rows that are not means, such as a calibration error, by `log_mean` or `log`."""

    def episode_metrics(self, batch: Batch, sampled: bool) -> dict[str, Tensor]:
        """Numbers of the episodes that the policy played in an evaluation, each (B,), logged beside their return."""
        return {}

    def advance(self) -> None:
        """Move what follows each optimizer step. Whatever moves is a buffer, so that the checkpoint has it."""

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write to a checkpoint what is no buffer."""

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Read it back. Raises ValueError: the run cannot go on from it."""

    # ---- what the module does with them

    def prepare(self, batch: Batch) -> Batch:
        """All phases, in order: a collection as `terms` reads it."""
        raise NotImplementedError

    def losses(self, batch: Batch, now: Evaluation | None = None) -> dict[str, Tensor]:
        """The weighted mean of each term of a prepared batch, (), by name; their sum is the loss."""
        raise NotImplementedError

    def figures(self, batch: Batch, now: Evaluation | None = None) -> dict[str, Tensor]:
        """The mean of each term that is `logged_only`, (), by name."""
        raise NotImplementedError

    # ---- what a mixin may use

    def critic(self, batch: Batch, where: Tensor, features: Tensor | None = None) -> Tensor | None:
        """Values (N,) of the N steps of `where`; None where there is no network for them.

        Args: features: the policy's (N, d), if they are there already.
        """
        return None

    def reference_log_probs(self, batch: Batch, where: Tensor) -> Tensor:
        """log π_ref(a|s) (B, T) at the steps of `where` (B, T), 0 elsewhere: of a `ReferenceObjective` to the right."""
        raise NotImplementedError("join a ReferenceObjective: without one there is no reference")

    def decisions(self, batch: Batch) -> Tensor:
        """Number of decisions in a collection, (): the steps, unless a whole reply is one."""
        return batch.valid.sum()

    def evaluate(self, batch: Batch) -> Evaluation:
        """What the networks say at `read_steps` of a batch."""
        raise NotImplementedError

    def read_steps(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps at which the network is read."""
        raise NotImplementedError

    def note(self, name: str, x: Tensor, counts: bool = True) -> None:
        """Log x () as `train/name`, in the mean of what is noted until the next logging."""

    def log_mean(
        self, stage: str, name: str, mean: Tensor, count: Tensor, metric: type[MeanMetric] = MeanMetric
    ) -> None:
        """Log a mean () over `count` () steps of an evaluation batch, so that it becomes the mean over all batches."""

    def reading_parts(self, steps: Tensor, most: int | None = None) -> list[Tensor]:
        """Row numbers of the parts in which rows are read up to their last of `steps` (B, T), without gradient.

        Of the DataModule's `rows_per_batch` or `tokens_per_batch`; without them of `most` rows.
        """
        trainer = trainer_of(self)
        source = None if trainer is None else data_source(trainer)
        limits = (None, None) if source is None else (source.rows_per_batch, source.tokens_per_batch)
        parts = parts_of(row_lengths(steps), *((most, None) if limits == (None, None) else limits))
        return [rows.to(steps.device) for rows in parts]

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """Σ x over the ranks of the Trainer; x itself without one."""
        trainer = trainer_of(self)
        return x if trainer is None or trainer.world_size == 1 else trainer.strategy.reduce(x, reduce_op="sum")

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Eval mode and the Trainer's precision: dropout or another dtype would break "the ratio is 1".

        Inside, nothing learns: weights are rounded to half precision once, not for every token.
        """
        if self.training:
            self.eval()
        trainer = trainer_of(self)
        if trainer is None:
            yield
            return
        with trainer.precision_plugin.forward_context():
            before = torch.is_autocast_cache_enabled()
            torch.set_autocast_cache_enabled(True)
            try:
                yield
            finally:
                torch.set_autocast_cache_enabled(before)
                torch.clear_autocast_cache()  # made without gradients: not for who learns in the same context


def hooks_of(objective: type, name: str) -> list[tuple[type, Callable[..., Any]]]:
    """The classes that fill a hook, and their functions, from the rightmost base to the leftmost."""
    return [(cls, vars(cls)[name]) for cls in _filled_by(objective, name)]


@cache  # asked for in every optimizer step
def _filled_by(objective: type, name: str) -> list[type]:
    filled = [cls for cls in reversed(objective.__mro__) if issubclass(cls, Objective) and cls is not Objective]
    return [cls for cls in filled if name in vars(cls)]
