"""One training step and one optimizer: the sum of terms, their logging, and what is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_nlf.batch import Batch
from lightning_nlf.construction import rebuild
from lightning_nlf.data_source import data_source
from lightning_nlf.maths.means import count_of
from lightning_nlf.modules.checkpointing import Checkpointed
from lightning_nlf.modules.memory_estimate import check_memory
from lightning_nlf.modules.micro_batches import micro_batches, stamped
from lightning_nlf.modules.phases import PhasedObjective
from lightning_nlf.numbers import Positive
from lightning_nlf.objective import hooks_of


class ObjectiveModule(PhasedObjective, Checkpointed, L.LightningModule):
    """Sums the terms of its objectives, logs each by its own name, steps one optimizer.

    Args:
        optimizer, lr_scheduler: as in any LightningCLI yaml, by `class_path`.
        network_lr: learning rates of single networks by their name (`value: 0.001`), where they differ.
        reduce: `mean` of each term over its steps, or their `sum`: then a long row counts for more than a short one,
            and an update of many steps for more than one of few, as in the textbook's REINFORCE.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        network_lr: dict[str, Positive] | None = None,
        reduce: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optimizer, self.lr_scheduler, self.network_lr = optimizer, lr_scheduler, network_lr or {}
        self.reduce = reduce
        self.memory_is_checked = False  # whether somebody has called `check_memory` for this run
        self.register_buffer("experience", torch.zeros((), dtype=torch.float64))
        self.held_out = nn.ModuleDict()  # a metric for each name that was logged
        self._unlogged: dict[str, list[Tensor]] = {}  # those of the steps that count
        self._suspect = ""

    # ---- training

    def setup(self, stage: str) -> None:
        if self.trainer.precision in ("16-true", "bf16-true", "64-true"):
            raise ValueError(f"trainer.precision: {self.trainer.precision} is not what states come in; use bf16-mixed")
        digest = self._check_tokenizer()
        for network in self._networks.values():
            network.check_length(data_source(self.trainer).longest_row)
        if stage == "fit":
            self._remember_tokenizer(digest)
            if not self.memory_is_checked:
                check_memory(self._networks.values(), data_source(self.trainer), self.trainer.strategy.root_device)

    def on_train_start(self) -> None:
        """Refuses another learning rate than the checkpoint's: it would be recorded, and not used."""
        lrs = [group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        if self.lr_scheduler is None and lrs != self._configured_lrs:
            raise ValueError(f"optimizer.lr: the checkpoint goes on with {lrs}, not {self._configured_lrs}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if not self.training:  # acting switched to eval mode
            self.train()
        parts = stamped(micro_batches(batch, self.trainer), batch)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.trainer.optimizers[0].zero_grad()
        noted: dict[str, Tensor] = {}
        counts: dict[str, bool] = {}
        for part in parts[:-1]:
            self._add_gradient(self._loss_of(part, len(parts), noted, counts))
        loss = self._loss_of(parts[-1], len(parts), noted, counts)
        for name, counted in counts.items():
            self.note(name, noted[name], counted)
        self.note("loss", noted["loss"])
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set without being declared
        if every and ((self.global_step + 1) % every == 0 or self.trainer.should_stop):
            self._log_terms(self.global_step)
        return loss if len(parts) == 1 else loss + (noted["loss"] - loss.detach())

    def _loss_of(self, batch: Batch, parts: int, noted: dict[str, Tensor], counts: dict[str, bool]) -> Tensor:
        """The loss of one of so many parts, (); adds its terms to `noted`, and whether each counts to `counts`."""
        terms = self.gather(batch, self.evaluate(batch))
        means = {term.name: self.weighted(term, batch) for term in terms}
        if parts > 1:  # a number of its own is no sum over rows
            means |= {term.name: means[term.name] / parts for term in terms if term.over is None}
        losses = {term.name: means[term.name] for term in terms if not term.logged_only}
        loss = torch.stack([x.float() for x in losses.values()]).sum()
        if not torch.isfinite(loss):
            self._refuse_loss(", ".join(f"{name} = {float(x.detach())}" for name, x in losses.items()))
        for term in terms:
            counts[term.name] = term.over is None or not batch.totals or bool(count_of(batch, term.over) > 0)
        for name, x in {**means, "loss": loss}.items():
            noted[name] = noted[name] + x.detach() if name in noted else x.detach()
        return loss

    def _add_gradient(self, loss: Tensor) -> None:
        """Backward of a part that is not the last, which is Lightning's: as Lightning does it, but within the step."""
        with torch.autocast(self.device.type, enabled=False):
            self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, self.trainer.optimizers[0])
        torch.clear_autocast_cache()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: `training_step` does it. Lightning would between forward and backward, which is too late for parts
        that have gone backward already, and the old gradients would stand beside all activations."""

    def on_train_epoch_end(self) -> None:
        self._log_terms(self.global_step - 1)

    def note(self, name: str, x: Tensor, counts: bool = True) -> None:
        """Keep a scalar for the mean that is logged next; the same names on every rank."""
        values = self._unlogged.setdefault(name, [])
        if counts:
            values.append(x.detach().clone())

    def _log_terms(self, step: int) -> None:
        """Each term's mean since the last time, over the optimizer steps that had something for it."""
        if not self._unlogged:
            return
        if twice := self._unlogged.keys() & data_source(self.trainer).statistics.keys():
            raise ValueError(f"train/{min(twice)}: the DataModule logs this name too; give the term another")
        kept = self._unlogged.values()
        zero = torch.zeros((), device=self.device)  # of a term that no step counted for on this rank
        local = [torch.stack(values).float().sum() if values else zero for values in kept]
        lengths = torch.tensor([float(len(values)) for values in kept], device=self.device)
        sums, counts = self.sum_over_ranks(torch.stack([torch.stack(local), lengths])).cpu()  # (terms,) each
        names = [f"train/{name}" for name in self._unlogged]
        self._unlogged.clear()
        metrics = {name: sums[i] / counts[i] for i, name in enumerate(names) if counts[i]}
        self.log_dict(metrics, logger=False)
        for logger in self.loggers:  # `log_dict` would repeat old values of terms that had no step this time
            logger.log_metrics({name: float(x) for name, x in metrics.items()}, step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return  # a gradient scaler expects infinities, and skips the step itself
        for name, network in self.named_children():
            gradients = {f"{name}.{key}": p.grad for key, p in network.named_parameters() if p.grad is not None}
            if not gradients:
                continue
            norm = nn.utils.get_total_norm(gradients.values())
            if not torch.isfinite(norm):
                bad = [key for key, gradient in gradients.items() if not torch.isfinite(gradient).all()]
                self._refuse(", ".join(bad or gradients) + self._suspect, "gradient")
            if not norm:  # nothing was learned about this network: momentum must not move it
                network.zero_grad(set_to_none=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.advance_all()

    def advance_all(self) -> None:
        """What follows an optimizer step: each mixin's `advance`."""
        for _, advance in hooks_of(type(self), "advance"):
            advance(self)

    def configure_optimizers(self) -> Any:
        names = [name for name, network in self.named_children() if any(p.requires_grad for p in network.parameters())]
        unknown = set(self.network_lr) - set(names)
        if unknown:
            raise ValueError(f"network_lr names {sorted(unknown)}: the networks are {names}")
        groups: list[dict[str, Any]] = []
        for name, network in self.named_children():
            parameters = [p for p in network.parameters() if p.requires_grad]
            if parameters:
                rate = {"lr": self.network_lr[name]} if name in self.network_lr else {}
                groups.append({"params": parameters, "name": name} | rate)
        optimizer = self.optimizer(groups)
        self._configured_lrs = [group["lr"] for group in optimizer.param_groups]
        return optimizer if self.lr_scheduler is None else ([optimizer], [self.lr_scheduler(optimizer)])

    # ---- evaluation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.assess("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.assess("test", batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        return batch

    def assess(self, stage: str, batch: Batch, loader: int = 0) -> None:
        """Log what an evaluation batch says of the networks, as `stage/…`; `loader` says of which loader."""
        raise NotImplementedError

    # ---- what is not finite

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = "cpu",
        strict: bool = True,
        weights_only: bool = True,
        trust: Sequence[str] | None = None,
        **changes: Any,
    ) -> Any:
        """The module with its networks and weights, from the checkpoint alone: see `construction.rebuild`.

        Lightning's own would build this class, whatever the checkpoint is of, and without networks.
        """
        if not weights_only:
            raise ValueError("weights_only=False: a checkpoint is never run as code")
        return rebuild(cls, checkpoint_path, map_location, strict, trust, **changes)

    def _refuse_loss(self, what: str) -> None:
        if self.trainer.world_size == 1:
            self._refuse(what, "loss")
        # One rank that stopped here would leave the others waiting: its gradient brings the news to all of them.
        self._suspect = f" (on rank {self.global_rank}: {what})"
