"""Run the hooks of all mixins in named phases, and average each term in training and on held-out rows."""

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
    """A loss, reward or gradient is NaN or infinite. The message gives its name and the optimizer step."""


class PhasedObjective(Objective):
    """Combines the objectives of a module: runs the phases in order and collects the terms."""

    held_out: nn.ModuleDict  # one metric for each name in the logs of held-out rows
    reduce: str
    names_loss = False  # whether the held-out loss is also logged as `loss`
    held_out_losses: Sequence[str] = ()  # names of the held-out losses; the first finite one selects the best model

    # ---- once per collection

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Run all phases, once per collection (`Actor.prepare`)."""
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
        owners: dict[str, type] = {}  # mask added in this phase → the mixin that added it
        for cls, hook in hooks_of(type(self), phase):
            before, batch = batch.masks, hook(self, batch)
            if batch is None:
                raise TypeError(f"{cls.__name__}.{phase} returned None; it must return the batch")
            for name in (name for name, mask in batch.masks.items() if mask is not before.get(name)):
                if name in (*COMPARISONS, "valid", "mask", "expert_mask"):
                    raise ValueError(f"masks: {cls.__name__} adds `{name}`, a reserved name; rename the mask")
                if name in owners:
                    raise ValueError(f"masks: {owners[name].__name__} and {cls.__name__} both add `{name}`; rename one")
                owners[name] = cls
        return batch

    def _refuse_rewards(self, batch: Batch) -> None:
        if batch.rewards is None:
            return
        bad = batch.valid & ~torch.isfinite(batch.rewards)
        if self.sum_over_ranks(bad.any().float()):  # so that all ranks stop together
            where = [f"row {r}, step {t} is {float(batch.rewards[r, t])}" for r, t in bad.nonzero()[:1].tolist()]
            self._refuse(where[0] if where else "on another rank", "reward")

    def _refuse(self, place: str, kind: str) -> NoReturn:
        raise NonFiniteError(f"non-finite {kind} at optimizer step {self.global_step}: {place}")

    # ---- terms and their means

    def gather(self, batch: Batch, now: Evaluation, held_out: bool = False) -> list[Term]:
        """The terms of all mixins. On held-out rows, a mixin whose fields are missing is left out.

        Raises: MissingField: a training batch lacks a field; ValueError: two terms have the same name.
        """
        terms: list[Term] = []
        for _, hook in hooks_of(type(self), "terms"):
            try:
                terms += list(hook(self, batch, now))  # either all terms of a mixin, or none
            except MissingField:
                if not held_out:
                    raise
        names = ["loss", *(term.name for term in terms)]
        if len(set(names)) < len(names):
            raise ValueError(f"{type(self).__name__}: two terms are called {max(names, key=names.count)}; rename one")
        return terms

    def mean(self, term: Term, batch: Batch, reduce: str = "mean") -> Tensor:
        """Mean of a term, Σ value / count, ().

        The mean does not depend on how rows are split into micro-batches and ranks.

        Padding may contain any value, including NaN, because it is replaced by 0 and not multiplied by 0.
        Args: reduce: `mean`, or `sum`. The value for `sum` is scaled: its average, by Lightning and DDP, is the sum
            over all micro-batches and ranks.
        """
        if term.over is None:
            return term.value
        masks = ("mask", "expert_mask", "valid", *batch.masks)
        for name in (term.over, term.per):
            if name is not None and name not in (*masks, *COMPARISONS):
                raise ValueError(f"term {term.name}: there is no mask `{name}`; the masks are {', '.join(masks)}")
        mask = None if term.over in COMPARISONS else mask_named(batch, term.over)
        if mask is not None and mask.shape != term.value.shape:
            raise ValueError(
                f"term {term.name}: its values have shape {tuple(term.value.shape)}, but the mask `{term.over}` has "
                f"{tuple(mask.shape)}"
            )
        total = (term.value if mask is None else torch.where(mask, term.value, 0)).sum()
        if reduce == "sum":
            return total * self._parts
        count = self.count(term, batch)
        return total / torch.where(count > 0, count, 1)

    def count(self, term: Term, batch: Batch) -> Tensor:
        """The divisor of the mean of a term, (): the count of the term's `per`, or else of its `over`."""
        assert term.over is not None
        return count_of(batch, term.per or term.over)

    def weighted(self, term: Term, batch: Batch) -> Tensor:
        """`weight` times the mean of a term, or its sum with `reduce: sum`, ()."""
        mean = self.mean(term, batch, self.reduce)
        unweighted = isinstance(term.weight, float) and term.weight == 1
        return mean if unweighted else mean * term.weight

    @property
    def _parts(self) -> int:
        """Micro-batches × ranks: the number of losses that Lightning and DDP average over."""
        trainer = trainer_of(self)
        return 1 if trainer is None else trainer.world_size * trainer.accumulate_grad_batches

    def losses(self, batch: Batch, now: Evaluation | None = None) -> dict[str, Tensor]:
        """The weighted loss terms of a prepared batch, each (), by name."""
        terms = self.gather(batch, self.evaluate(batch) if now is None else now)
        return {term.name: self.weighted(term, batch) for term in terms if not term.logged_only}

    def figures(self, batch: Batch, now: Evaluation | None = None) -> dict[str, Tensor]:
        """The figures (terms without a loss) of a prepared batch, each (), by name."""
        terms = self.gather(batch, self.evaluate(batch) if now is None else now)
        return {term.name: self.weighted(term, batch) for term in terms if term.logged_only}

    # ---- held-out rows

    def assess_held_out(self, stage: str, batch: Batch) -> None:
        """Log the training terms on held-out rows. Each is a mean over all batches and ranks.

        Raises: ValueError: no objective has a loss on held-out rows.
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
            raise ValueError("held-out rows have no rewards to evaluate; set val_share to 0")
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
            raise ValueError(f"{type(self).__name__}: two held-out metrics are called {name}; rename one")
        self._logged.add(name)
        if name not in self.held_out:
            self.held_out[name] = metric().to(self.device)
        held_out = self.held_out[name]
        assert isinstance(held_out, MeanMetric)
        held_out.update(mean, count)  # reduces sums and counts over ranks
        place = f"held_out.{name}"  # Lightning collects metrics once, maybe before this metric exists
        self.log(f"{stage}/{name}", held_out, batch_size=1, add_dataloader_idx=False, metric_attribute=place)

    def held_out_metrics(self) -> list[str]:
        """All names under which held-out rows may be logged, without the stage prefix."""
        kinds = ("reports", "measures")
        return [name for cls in type(self).__mro__ for kind in kinds for name in vars(cls).get(kind, ())]
