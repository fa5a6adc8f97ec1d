"""The interface of an objective: hooks that prepare a batch in named phases, and the terms of its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

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

PHASES = ("annotate", "select", "masks", "refer", "shape_rewards", "credit", "reweigh")  # for a collection in training
HELD_OUT_PHASES = ("annotate", "masks", "refer")  # for held-out rows
Best = tuple[str, Literal["min", "max"]] | None  # a metric on held-out rows, and whether lower or higher is better
HOOKS = (*PHASES, "terms", "measure", "episode_metrics", "advance", "save", "load")


@dataclass(frozen=True)
class Term:
    """One term of a loss, or a logged figure.

    Its values are averaged and logged, and the weighted mean is added to the loss.

    `train/<name>` is the weighted mean, `val/<name>` the unweighted mean.
    """

    name: str
    value: Tensor  # (B, T) steps, (B,) rows, (P,) pairs or (G,) rankings, not averaged; () if `over` is None
    # The mask to average over: `mask` (the learner's steps), `expert_mask`, `valid`, a name in `batch.masks` ((B, T) of
    # steps or (B,) of rows), `pairs`, `strict_pairs` or `rankings`. None: a scalar, added unless `logged_only`.
    over: str | None
    per: str | None = None  # the count to divide by; default: the count of `over`
    weight: float | Tensor = 1.0
    logged_only: bool = False  # True for a figure, which is not added to the loss


@dataclass
class Evaluation:
    """Outputs of the current networks on a batch, computed once per optimizer step and shared by all terms."""

    where: Tensor  # (B, T) bool: True at the N steps that were evaluated
    distribution: Distribution  # of batch shape (N,)
    log_probs: Tensor  # (B, T) of `batch.actions`; 0 elsewhere
    values: Tensor | None  # (B, T); 0 elsewhere

    @cached_property
    def entropy(self) -> Tensor:  # (B, T)
        return self.scatter(self.distribution.entropy())

    def scatter(self, x: Tensor) -> Tensor:
        """Scatter x (N,) to (B, T), with 0 at steps that were not evaluated."""
        return scattered(x, self.where)


def scattered(x: Tensor, where: Tensor) -> Tensor:
    """Scatter x (N,) to the N True steps of `where` (B, T), with 0 elsewhere.  (B, T)"""
    return torch.zeros(where.shape, dtype=x.dtype, device=x.device).masked_scatter(where, x)


class Objective(L.LightningModule if TYPE_CHECKING else object):  # type: ignore[misc]
    """Base class of the objective mixins: the hooks that a mixin may define.

    The module calls the hook of each mixin once per phase, from the rightmost base to the leftmost. A hook never calls
    `super()`. A class cannot combine two mixins that share the name of a knob or a method (see `compatibility`).
    """

    needs: tuple[type, ...] = ()  # classes that must be to the right of this one
    excludes: tuple[type, ...] = ()  # mixins that cannot be combined with this one

    ratio_cap = 2.0  # cap of the importance weights of replies from a generation server, see `truncated_ratio`
    experience: Tensor  # () float64: decisions so far, over all ranks; schedules depend on it
    reports: tuple[str, ...] = ()  # names of the terms on held-out rows
    measures: tuple[str, ...] = ()  # names that `measure` logs on held-out rows
    feedback: tuple[str, ...] = ()  # fields of a feedback file that the mixin learns from, such as "score"
    best: Best = None  # the name in `reports` or `measures` that selects the best checkpoint, and its mode

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        mixins = [mixin for mixin in cls.__mro__ if issubclass(mixin, Objective) and mixin is not Objective]
        mixins = [mixin for mixin in mixins if not issubclass(mixin, L.LightningModule)]
        refuse_clashes(cls, mixins, (*HOOKS, "reports", "measures", "best", "feedback", "needs", "excludes"))
        refuse_excluded(cls, mixins)
        refuse_misspelt(cls, Objective, HOOKS)
        if issubclass(cls, L.LightningModule):
            refuse_missing(cls, mixins)

    # ---- the phases of a collection, without gradients

    def annotate(self, batch: Batch) -> Batch:
        """1. Add ranks, labels or views to the rows. Also runs on held-out rows."""
        return batch

    def select(self, batch: Batch) -> Batch:
        """2. Choose the rows or steps to learn from, by rejection or filtering."""
        return batch

    def masks(self, batch: Batch) -> Batch:
        """3. Add the masks that terms are averaged over: `return batch.with_masks(name=…)`, (B, T) steps or (B,) rows.

        The policy is evaluated at `mask`, `expert_mask` and every added mask of steps. A mask of rows adds no steps.
        Also runs on held-out rows, which may lack a field such as rewards. In that case, do not add the mask, and let
        `terms` raise MissingField by `required(batch.masks.get(name), "…")`.
        """
        return batch

    def refer(self, batch: Batch) -> Batch:
        """4. Add the outputs of a frozen network at the evaluated steps. Also runs on held-out rows."""
        return batch

    def shape_rewards(self, batch: Batch) -> Batch:
        """5. Clip, penalise or whiten the rewards.

        A KL penalty clips the raw rewards and logs them as `train/score`. A mixin that changes the raw rewards belongs
        to the right of the KL penalty.
        """
        return batch

    def credit(self, batch: Batch) -> Batch:
        """6. Compute returns and advantages."""
        return batch

    def reweigh(self, batch: Batch) -> Batch:
        """7. Change the advantages, or compute a weight for each step."""
        return batch

    # ---- each micro-batch

    def terms(self, batch: Batch, now: Evaluation) -> Iterable[Term]:
        """The loss terms and figures of a micro-batch or of held-out rows: `yield Term(…)`.

        Raises: MissingField: the batch lacks a field. On held-out rows, all terms of this mixin are left out in that
            case.
        """
        return ()

    def measure(self, stage: str, batch: Batch, now: Evaluation) -> None:
        """Log held-out metrics that are not plain means, such as a calibration error, by `log_mean` or `log`."""

    def episode_metrics(self, batch: Batch, sampled: bool) -> dict[str, Tensor]:
        """One number per episode that the policy played in an evaluation, each (B,). Logged next to the return."""
        return {}

    def advance(self) -> None:
        """Update state after each optimizer step. Keep this state in buffers, so that checkpoints contain it."""

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write state that is not in a buffer to a checkpoint."""

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Read the state that `save` wrote. Raises ValueError: the run cannot be resumed from this checkpoint."""

    # ---- methods that the module implements

    def prepare(self, batch: Batch) -> Batch:
        """Run all phases in order, so that the collection has every field that `terms` needs."""
        raise NotImplementedError

    def losses(self, batch: Batch, now: Evaluation | None = None) -> dict[str, Tensor]:
        """The weighted mean of each term of a prepared batch, (), by name. Their sum is the loss."""
        raise NotImplementedError

    def figures(self, batch: Batch, now: Evaluation | None = None) -> dict[str, Tensor]:
        """The mean of each term that is `logged_only`, (), by name."""
        raise NotImplementedError

    # ---- methods that a mixin may call

    def critic(self, batch: Batch, where: Tensor, features: Tensor | None = None) -> Tensor | None:
        """Values (N,) at the N steps of `where`. None if the module has no value network.

        Args: features: features (N, d) of the policy, if they have been computed already.
        """
        return None

    def reference_log_probs(self, batch: Batch, where: Tensor) -> Tensor:
        """log π_ref(a|s) (B, T) at the steps of `where` (B, T), 0 elsewhere. Needs a `ReferenceObjective`."""
        raise NotImplementedError("there is no reference policy: add a ReferenceObjective to the class")

    def decisions(self, batch: Batch) -> Tensor:
        """Number of decisions in a collection, ().

        A decision is a valid step, or a whole reply with `decision: reply`.
        """
        return batch.valid.sum()

    def evaluate(self, batch: Batch) -> Evaluation:
        """Outputs of the networks at `read_steps` of a batch."""
        raise NotImplementedError

    def read_steps(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps at which the network is evaluated."""
        raise NotImplementedError

    def note(self, name: str, x: Tensor, counts: bool = True) -> None:
        """Log x () as `train/name`, averaged over all calls since the last logging."""

    def log_mean(
        self, stage: str, name: str, mean: Tensor, count: Tensor, metric: type[MeanMetric] = MeanMetric
    ) -> None:
        """Log a mean () over `count` () steps of an evaluation batch. The logged value is the mean over all batches."""

    def reading_parts(self, steps: Tensor, max_rows: int | None = None) -> list[Tensor]:
        """Split the rows into parts for a forward pass without gradients, up to the last True step of `steps` (B, T).

        The part size follows the DataModule's `rows_per_batch` or `tokens_per_batch`, else `max_rows` rows. Returns the
        row numbers of each part.
        """
        trainer = trainer_of(self)
        source = None if trainer is None else data_source(trainer)
        limits = (None, None) if source is None else (source.rows_per_batch, source.tokens_per_batch)
        parts = parts_of(row_lengths(steps), *((max_rows, None) if limits == (None, None) else limits))
        return [rows.to(steps.device) for rows in parts]

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """Sum x over the ranks of the Trainer. Without a Trainer, return x."""
        trainer = trainer_of(self)
        return x if trainer is None or trainer.world_size == 1 else trainer.strategy.reduce(x, reduce_op="sum")

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Switch to eval mode and the precision of the Trainer. Otherwise the first ratio would not be 1.

        Weights are rounded to half precision once and not for every token, because nothing is trained in this context.
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
                torch.clear_autocast_cache()  # cached tensors have no gradients, so training must not use them


def hooks_of(objective: type, name: str) -> list[tuple[type, Callable[..., Any]]]:
    """The classes that define a hook, and their functions, from the rightmost base to the leftmost."""
    return [(cls, vars(cls)[name]) for cls in _filled_by(objective, name)]


@cache  # called in every optimizer step
def _filled_by(objective: type, name: str) -> list[type]:
    filled = [cls for cls in reversed(objective.__mro__) if issubclass(cls, Objective) and cls is not Objective]
    return [cls for cls in filled if name in vars(cls)]
