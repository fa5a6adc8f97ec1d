"""The hooks of all mixins, run in named phases; the mean of each term, in training and on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_nlf.batch import Batch, MissingField
from lightning_nlf.maths.means import COMPARISONS, count_of, mask_named
from lightning_nlf.modules.micro_batches import micro_batches
from lightning_nlf.objective import HELD_OUT_PHASES, PHASES, Evaluation, Objective, Term, hooks_of
from lightning_nlf.private_names import trainer_of


class NonFiniteError(RuntimeError):
    """A loss, a reward or a gradient is NaN or infinite. Says which, and at what step."""


class PhasedObjective(Objective):
    """All objectives of a module as one: phases in order, terms in one list."""

    held_out: nn.ModuleDict  # a metric for each name that held-out rows were logged under
    reduce: str
    names_loss = False  # whether held-out rows have the one loss as `loss` too, whatever it is called
    held_out_losses: Sequence[str] = ()  # names of their losses; the first that is a number says which model is best

    # ---- once per collection

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """`Actor.prepare`: all phases, once per collection."""
        self.eval()
        batch = batch.to(self.device)
        for phase in PHASES:
            batch = self._run(phase, batch)
            if phase == "select":
                self.experience += self.sum_over_ranks(self.decisions(batch))
            if phase == "shape_rewards":
                self._refuse_rewards(batch)
        return batch

    def _run(self, phase: str, batch: Batch) -> Batch:
        named: dict[str, type] = {}  # masks of this phase, and who named them
        for cls, hook in hooks_of(type(self), phase):
            before, batch = batch.masks, hook(self, batch)
            if batch is None:
                raise TypeError(f"{cls.__name__}.{phase} returned None: it must return the batch")
            for name in (name for name, mask in batch.masks.items() if mask is not before.get(name)):
                if name in (*COMPARISONS, "valid", "mask", "expert_mask"):
                    raise ValueError(f"masks: {cls.__name__} names `{name}`, which every batch has already")
                if name in named:
                    raise ValueError(f"masks: {named[name].__name__} and {cls.__name__} both name `{name}`")
                named[name] = cls
        return batch

    def _refuse_rewards(self, batch: Batch) -> None:
        if batch.rewards is None:
            return
        bad = batch.valid & ~torch.isfinite(batch.rewards)
        if self.sum_over_ranks(bad.any().float()):  # all ranks stop together
            where = [f"row {r}, step {t} is {float(batch.rewards[r, t])}" for r, t in bad.nonzero()[:1].tolist()]
            self._refuse(where[0] if where else "on another rank", "reward")

    def _refuse(self, what: str, kind: str) -> NoReturn:
        raise NonFiniteError(f"non-finite {kind} at optimizer step {self.global_step}: {what}")

    # ---- terms and their means

    def gather(self, batch: Batch, now: Evaluation, held_out: bool = False) -> list[Term]:
        """The terms of all mixins. Of held-out rows, those of the mixins whose fields are there.

        Raises: MissingField: a training batch lacks a field; ValueError: two terms have one name.
        """
        terms: list[Term] = []
        for _, hook in hooks_of(type(self), "terms"):
            try:
                terms += list(hook(self, batch, now))  # all of a mixin's terms, or none
            except MissingField:
                if not held_out:
                    raise
        names = ["loss", *(term.name for term in terms)]
        if len(set(names)) < len(names):
            raise ValueError(f"{type(self).__name__}: two terms have the name {max(names, key=names.count)}")
        return terms

    def mean(self, term: Term, batch: Batch, reduce: str = "mean") -> Tensor:
        """Σ value / count, (): it does not depend on how rows were cut into micro-batches and ranks.

        Padding may hold anything, NaN too: it is selected away, not multiplied by 0.
        Args: reduce: `sum` gives what Lightning and DDP average to the sum over micro-batches and ranks.
        """
        if term.over is None:
            return term.value
        try:
            mask = None if term.over in COMPARISONS else mask_named(batch, term.over)
        except KeyError:
            there = ", ".join(("mask", "expert_mask", "valid", *batch.masks))
            raise ValueError(f"term {term.name}: nobody named the mask `{term.over}`; there are {there}") from None
        if mask is not None and mask.shape != term.value.shape:
            raise ValueError(f"{term.name}: values {tuple(term.value.shape)} over {term.over} {tuple(mask.shape)}")
        total = (term.value if mask is None else torch.where(mask, term.value, 0)).sum()
        if reduce == "sum":
            return total * self._parts
        count = self.count(term, batch)
        return total / torch.where(count > 0, count, 1)

    def count(self, term: Term, batch: Batch) -> Tensor:
        """What the mean of a term divides by, (): its `per`, else its `over`."""
        assert term.over is not None
        return count_of(batch, term.per or term.over)

    def weighted(self, term: Term, batch: Batch) -> Tensor:
        """`weight` times the mean or, with `reduce: sum`, the sum, ()."""
        mean = self.mean(term, batch, self.reduce)
        unweighted = isinstance(term.weight, float) and term.weight == 1
        return mean if unweighted else mean * term.weight

    @property
    def _parts(self) -> int:
        """Micro-batches × ranks, over which Lightning and DDP take the mean."""
        trainer = trainer_of(self)
        return 1 if trainer is None else trainer.world_size * trainer.accumulate_grad_batches

    def losses(self, batch: Batch, now: Evaluation | None = None) -> dict[str, Tensor]:
        """Each loss term of a prepared batch, weighted, (), by its name."""
        terms = self.gather(batch, self.evaluate(batch) if now is None else now)
        return {term.name: self.weighted(term, batch) for term in terms if not term.logged_only}

    def figures(self, batch: Batch, now: Evaluation | None = None) -> dict[str, Tensor]:
        """Each figure of a prepared batch that is no loss, (), by its name."""
        terms = self.gather(batch, self.evaluate(batch) if now is None else now)
        return {term.name: self.weighted(term, batch) for term in terms if term.logged_only}

    # ---- held-out rows

    def assess_held_out(self, stage: str, batch: Batch) -> None:
        """Log the terms of training on held-out rows, each a mean over all batches and ranks.

        Raises: ValueError: no objective learns from such rows.
        """
        for phase in HELD_OUT_PHASES:
            batch = self._run(phase, batch)
        trainer = trainer_of(self)
        for part in [batch] if trainer is None else micro_batches(batch, trainer):
            self._measure_part(stage, part)

    def _measure_part(self, stage: str, batch: Batch) -> None:
        now = self.evaluate(batch)
        terms = self.gather(batch, now, held_out=True)
        losses = [term.name for term in terms if not term.logged_only]
        if not losses:
            raise ValueError("an evaluation is of rewards here, and held-out rows have none: hold none out (val_share)")
        self.held_out_losses = losses
        self._logged: set[str] = set()
        for term in terms:
            if term.over is not None:
                mean, count = self.mean(term, batch), self.count(term, batch)
                self.log_mean(stage, term.name, mean, count)
                if self.names_loss and not term.logged_only:
                    self.log_mean(stage, "loss", mean * term.weight, count)
        for _, measure in hooks_of(type(self), "measure"):
            measure(self, stage, batch, now)

    def log_mean(
        self, stage: str, name: str, mean: Tensor, count: Tensor, metric: type[MeanMetric] = MeanMetric
    ) -> None:
        if name in self._logged:
            raise ValueError(f"{type(self).__name__}: two figures of held-out rows have the name {name}")
        self._logged.add(name)
        if name not in self.held_out:
            self.held_out[name] = metric().to(self.device)
        held_out = self.held_out[name]
        assert isinstance(held_out, MeanMetric)
        held_out.update(mean, count)  # reduces sums and counts over ranks
        place = f"held_out.{name}"  # Lightning looks for the metrics of a module once, when there may be none
        self.log(f"{stage}/{name}", held_out, batch_size=1, add_dataloader_idx=False, metric_attribute=place)

    def held_out_metrics(self) -> list[str]:
        """All names under which held-out rows may be logged, without the stage."""
        kinds = ("reports", "measures")
        return [name for cls in type(self).__mro__ for kind in kinds for name in vars(cls).get(kind, ())]
