"""Base LightningModule: sums and logs the terms of the objectives, and takes the optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_nlf.batch import Batch
from lightning_nlf.construction import rebuild
from lightning_nlf.data_source import data_source
from lightning_nlf.maths.means import count_of
from lightning_nlf.modules.memory_estimate import check_memory
from lightning_nlf.modules.micro_batches import micro_batches, stamped
from lightning_nlf.modules.optimization import adam, refuse_both, straight_line
from lightning_nlf.modules.phases import PhasedObjective
from lightning_nlf.modules.sharding import Sharded
from lightning_nlf.numbers import NonNegative, Positive, Share
from lightning_nlf.objective import hooks_of


class ObjectiveModule(PhasedObjective, Sharded, L.LightningModule):
    """Base LightningModule of policies and reward models: one loss, the sum of all terms, and one optimizer.

    Args:
        lr: learning rate of Adam, or of AdamW with a `weight_decay`; 0.001 by default.
        lr_end: final learning rate as a share of `lr`. The learning rate changes linearly over `trainer.max_epochs`.
            None: constant.
        eps, weight_decay: epsilon and weight decay of Adam. The command line's defaults are Adam's, 1e-8 and 0. A
            language model that trains all weights has different defaults: a weight decay of 0.01 if its training rows
            are given, such as the rows of a file; an epsilon of 1e-5, as in PPO's reference code, if it samples the
            replies.
        optimizer, lr_scheduler: classes that replace the settings above, by `class_path`.
        network_lr: learning rates of single networks, by name (`value: 0.001`). All other networks have the
            optimizer's.
        reduce: `mean` or `sum` of each term over its steps. With `sum`, long rows count for more than short rows, and
            updates with many steps for more than updates with few steps, as in textbook REINFORCE.
    """

    def __init__(
        self,
        lr: Positive | None = None,
        lr_end: Share | None = None,
        eps: Positive | None = None,
        weight_decay: NonNegative | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        network_lr: dict[str, Positive] | None = None,
        reduce: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        refuse_both({"lr": lr, "eps": eps, "weight_decay": weight_decay}, "optimizer", optimizer)
        refuse_both({"lr_end": lr_end}, "lr_scheduler", lr_scheduler)
        self.optimizer = adam(lr, eps, weight_decay) if optimizer is None else optimizer
        self.lr_end, self.lr_scheduler, self.network_lr = lr_end, lr_scheduler, network_lr or {}
        self.reduce = reduce
        self.memory_is_checked = False  # set when `check_memory` has run
        self.register_buffer("experience", torch.zeros((), dtype=torch.float64))
        self.held_out = nn.ModuleDict()  # one metric per logged name
        self._unlogged: dict[str, list[Tensor]] = {}  # values since the last logging, from steps that count
        self._suspect = ""

    # ---- training

    def setup(self, stage: str) -> None:
        if self.trainer.precision in ("16-true", "bf16-true", "64-true"):
            raise ValueError(f"trainer.precision: {self.trainer.precision} would round observations; use bf16-mixed")
        digest = self._check_tokenizer()
        for network in self._networks.values():
            network.check_length(data_source(self.trainer).longest_row)
        if stage == "fit":
            self._remember_tokenizer(digest)
            if not self.memory_is_checked:
                check_memory(self._networks.values(), data_source(self.trainer), self.trainer.strategy.root_device)

    def on_train_start(self) -> None:
        """Refuse a learning rate that differs from the checkpoint's, because it would be logged but not used."""
        lrs = [group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        if self.lr_scheduler is None and self.lr_end is None and lrs != self._configured_lrs:
            raise ValueError(f"lr: got {self._configured_lrs}, but the checkpoint has {lrs}; set that to resume")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if not self.training:  # collecting switched to eval mode
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
        """Loss () of one of `parts` micro-batches.

        Adds the value of each term to `noted`, and whether the term has any values to `counts`.
        """
        terms = self.gather(batch, self.evaluate(batch))
        means = {term.name: self.weighted(term, batch) for term in terms}
        if parts > 1:  # a scalar term is not a sum over rows
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
        """Backward pass of a micro-batch before the last one. Lightning runs the last one, in the same way."""
        with torch.autocast(self.device.type, enabled=False):
            self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, self.trainer.optimizers[0])
        torch.clear_autocast_cache()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Does nothing, because `training_step` sets the gradients to zero.

        Lightning would call it between the forward and the backward pass. This would erase the gradients of earlier
        micro-batches. Old gradients would also take memory while all activations are in memory.
        """

    def on_train_epoch_end(self) -> None:
        self._log_terms(self.global_step - 1)

    def note(self, name: str, x: Tensor, counts: bool = True) -> None:
        """Keep a scalar for the mean that is logged next. All ranks must call this with the same names."""
        values = self._unlogged.setdefault(name, [])
        if counts:
            values.append(x.detach().clone())

    def _log_terms(self, step: int) -> None:
        """Log the mean of each term since the last logging, over the optimizer steps in which the term had values."""
        if not self._unlogged:
            return
        if twice := self._unlogged.keys() & data_source(self.trainer).statistics.keys():
            raise ValueError(f"train/{min(twice)}: the DataModule logs this name too; rename the term")
        noted = self._unlogged.values()
        zero = torch.zeros((), device=self.device)  # for terms without values on this rank
        local = [torch.stack(values).float().sum() if values else zero for values in noted]
        lengths = torch.tensor([float(len(values)) for values in noted], device=self.device)
        sums, counts = self.sum_over_ranks(torch.stack([torch.stack(local), lengths])).cpu()  # (terms,) each
        names = [f"train/{name}" for name in self._unlogged]
        self._unlogged.clear()
        metrics = {name: sums[i] / counts[i] for i, name in enumerate(names) if counts[i]}
        self.log_dict(metrics, logger=False)
        for logger in self.loggers:  # `log_dict` would repeat the old value of a term without new ones
            logger.log_metrics({name: float(x) for name, x in metrics.items()}, step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return  # a gradient scaler expects infinite gradients and skips the step
        for name, network in self.named_children():
            gradients = {f"{name}.{key}": p.grad for key, p in network.named_parameters() if p.grad is not None}
            if not gradients:
                continue
            norm = nn.utils.get_total_norm(gradients.values())
            if not torch.isfinite(norm):
                bad = [key for key, gradient in gradients.items() if not torch.isfinite(gradient).all()]
                self._refuse(", ".join(bad or gradients) + self._suspect, "gradient")
            if not norm:  # without a gradient, momentum must not move this network
                network.zero_grad(set_to_none=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.advance_all()

    def advance_all(self) -> None:
        """Call `advance` of each mixin, after an optimizer step."""
        for _, advance in hooks_of(type(self), "advance"):
            advance(self)

    def configure_optimizers(self) -> Any:
        names = [name for name, network in self.named_children() if any(p.requires_grad for p in network.parameters())]
        unknown = set(self.network_lr) - set(names)
        if unknown:
            raise ValueError(f"network_lr: there are no networks {sorted(unknown)}; the networks are {names}")
        groups: list[dict[str, Any]] = []
        for name, network in self.named_children():
            parameters = [p for p in network.parameters() if p.requires_grad]
            if parameters:
                rate = {"lr": self.network_lr[name]} if name in self.network_lr else {}
                groups.append({"params": parameters, "name": name} | rate)
        optimizer = self.optimizer(groups)
        self._configured_lrs = [group["lr"] for group in optimizer.param_groups]
        scheduler = self.lr_scheduler
        if scheduler is None and self.lr_end is not None:
            scheduler = partial(straight_line, end=self.lr_end, epochs=self.trainer.max_epochs)
        return optimizer if scheduler is None else ([optimizer], [scheduler(optimizer)])

    # ---- evaluation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.assess("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.assess("test", batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        return batch

    def assess(self, stage: str, batch: Batch, loader: int = 0) -> None:
        """Log the metrics of an evaluation batch as `stage/…`.

        `loader` is the index of the dataloader that gave the batch.
        """
        raise NotImplementedError

    # ---- loading, and losses that are not finite

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
        """Rebuild the module, with its networks and weights, from the checkpoint; see `construction.rebuild`.

        Lightning's method would build this class for any checkpoint, and without networks.
        """
        if not weights_only:
            raise ValueError("weights_only=False: checkpoints are never run as code; remove this argument")
        return rebuild(cls, checkpoint_path, map_location, strict, trust, **changes)

    def _refuse_loss(self, losses: str) -> None:
        if self.trainer.world_size == 1:
            self._refuse(losses, "loss")
        # If one rank stopped here, the other ranks would wait for ever. The infinite gradient stops all ranks.
        self._suspect = f" (on rank {self.global_rank}: {losses})"
