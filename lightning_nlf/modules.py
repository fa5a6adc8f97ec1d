"""What is Lightning: one training step, one optimizer, one way of acting. What is optimised is a mixin's business."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_nlf import generation
from lightning_nlf.batch import Batch
from lightning_nlf.construction import rebuild
from lightning_nlf.functional import episode_sums, followed, row_sums
from lightning_nlf.networks import Network, Policy
from lightning_nlf.numbers import Positive
from lightning_nlf.objective import Evaluation, Objective, scattered


class NonFiniteError(RuntimeError):
    """A loss, a reward or a gradient is NaN or infinite. Says which, and at what step."""


class ObjectiveModule(Objective, L.LightningModule):
    """Sums the terms of its objectives, logs each by its own name, steps one optimizer.

    Args:
        optimizer, lr_scheduler: as in any LightningCLI yaml, by `class_path`.
        network_lr: learning rates of single networks by their name (`value: 0.001`), where they differ.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        network_lr: dict[str, Positive] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optimizer, self.lr_scheduler, self.network_lr = optimizer, lr_scheduler, network_lr or {}
        self.register_buffer("experience", torch.zeros((), dtype=torch.float64))
        self._unlogged: dict[str, list[Tensor]] = {}  # those of the steps that count
        self._suspect = ""

    # ---- training

    def setup(self, stage: str) -> None:
        if self.trainer.precision in ("16-true", "bf16-true", "64-true"):
            raise ValueError(f"trainer.precision: {self.trainer.precision} is not what states come in; use bf16-mixed")
        digest = self._check_tokenizer()
        for network in self._networks.values():
            network.check_length(getattr(self.trainer.datamodule, "longest_row", None))  # type: ignore[attr-defined]
        if stage == "fit":
            self._remember_tokenizer(digest)

    def on_train_start(self) -> None:
        """Refuses another learning rate than the checkpoint's: it would be recorded, and not used."""
        lrs = [group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        if self.lr_scheduler is None and lrs != self._configured_lrs:
            raise ValueError(f"optimizer.lr: the checkpoint goes on with {lrs}, not {self._configured_lrs}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if not self.training:  # acting switched to eval mode
            self.train()
        now = self.evaluate(batch)
        terms = self.terms(batch, now)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        if not torch.isfinite(loss):
            self._refuse_loss(", ".join(f"{name} = {float(term.detach())}" for name, term in terms.items()))
        for name, x in (terms | {"loss": loss} | now.notes).items():
            total = batch.totals.get(now.over.get(name, ""))
            self.note(name, x, total is None or bool(total > 0))
        if self.trainer._logger_connector.should_update_logs:
            self._log_terms(self.global_step)
        return loss

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
        self.advance()

    def configure_optimizers(self) -> Any:
        names = [name for name, network in self.named_children() if any(p.requires_grad for p in network.parameters())]
        unknown = set(self.network_lr) - set(names)
        if unknown:
            raise ValueError(f"network_lr names {sorted(unknown)}: the networks are {names}")
        groups: list[dict[str, Any]] = []
        for name, network in self.named_children():
            parameters = [p for p in network.parameters() if p.requires_grad]
            if parameters:
                own = {"lr": self.network_lr[name]} if name in self.network_lr else {}
                groups.append({"params": parameters, "name": name} | own)
        optimizer = self.optimizer(groups)
        self._configured_lrs = [group["lr"] for group in optimizer.param_groups]
        return optimizer if self.lr_scheduler is None else ([optimizer], [self.lr_scheduler(optimizer)])

    # ---- checkpoint

    @property
    def _networks(self) -> dict[str, Network]:
        return {name: network for name, network in self.named_children() if isinstance(network, Network)}

    def _check_tokenizer(self) -> str | None:
        """The tokenizer whose ids the data and all networks mean, where any of them says. Raises ValueError."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set without being declared
        named = [getattr(data, "tokenizer_digest", None), *(each.tokenizer_digest for each in self._networks.values())]
        digest = next((each for each in named if each is not None), None)
        for network in self._networks.values():
            network.check_tokenizer(digest, getattr(data, "vocabulary", None))
        return digest

    def _remember_tokenizer(self, digest: str | None) -> None:
        for network in self._networks.values():
            network.tokenizer_digest = digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError: its ids are those of another tokenizer than the data module's."""
        if "tokenizer_digest" in checkpoint:
            self._remember_tokenizer(checkpoint["tokenizer_digest"])
            if self._trainer is not None:
                self._check_tokenizer()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for network in self._networks.values():
            if network.tokenizer_digest is not None:
                checkpoint["tokenizer_digest"] = network.tokenizer_digest
        # Built by hand, the hyperparameters are live networks: pickled code that no safe loader would read.
        if "_instantiator" not in checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}):
            checkpoint.pop(self.CHECKPOINT_HYPER_PARAMS_KEY, None)
            return
        saved = checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = dict(checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY])
        for name, network in self._networks.items():  # what came with `weights` must outlast them
            if network.arguments():
                spec = saved[name]
                saved[name] = spec | {"init_args": spec.get("init_args", {}) | network.arguments()}

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = "cpu",
        strict: bool = True,
        weights_only: bool = True,
        **changes: Any,
    ) -> Any:
        """The module with its networks and weights, from the checkpoint alone: see `construction.rebuild`.

        Lightning's own would build this class, whatever the checkpoint is of, and without networks.
        """
        if not weights_only:
            raise ValueError("weights_only=False: a checkpoint is never run as code")
        return rebuild(cls, checkpoint_path, map_location, strict, **changes)

    def _refuse_loss(self, what: str) -> None:
        if self.trainer.world_size == 1:
            self._refuse(what, "loss")
        # One rank that stopped here would leave the others waiting: its gradient brings the news to all of them.
        self._suspect = f" (on rank {self.global_rank}: {what})"

    def _refuse(self, what: str, kind: str) -> None:
        raise NonFiniteError(f"non-finite {kind} at optimizer step {self.global_step}: {what}")

    # ---- once per collection

    def prepare(self, batch: Batch) -> Batch:
        """Ends the chain of mixins: counts the experience and refuses non-finite rewards."""
        self.eval()
        batch = super().prepare(batch.to(self.device))
        if batch.rewards is not None:
            bad = batch.valid & ~torch.isfinite(batch.rewards)
            if self.sum_over_ranks(bad.any().float()):  # all ranks stop together
                where = [f"row {r}, step {t} is {float(batch.rewards[r, t])}" for r, t in bad.nonzero()[:1].tolist()]
                self._refuse(where[0] if where else "on another rank", "reward")
        self.experience += self.sum_over_ranks(batch.valid.sum())
        return batch

    # ---- evaluation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.measure("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.measure("test", batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        return batch


class PolicyModule(ObjectiveModule):
    """A policy that acts, and is evaluated where somebody learns from a step."""

    def __init__(self, policy: Policy, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.policy = policy
        self.played = nn.ModuleList([MeanMetric(), MeanMetric()])  # returns of the two evaluation loaders

    def measure(self, stage: str, batch: Batch, loader: int) -> None:
        """The first loader plays the mode of the policy, the second samples from it.

        Beside the return: the mean of what the batch says of each episode in numbers, `extra` (B,), by its name; over
        those of which it is known, where others are NaN.
        """
        assert batch.rewards is not None, "an evaluation batch has rewards"
        metric = self.played[loader]
        assert isinstance(metric, MeanMetric)
        metric.update(episode_sums(row_sums(batch.rewards, batch.valid), batch))  # reduces sums and counts over ranks
        how = ("", "_sampled")[loader]
        self.log(f"{stage}/return{how}", metric, batch_size=len(batch), add_dataloader_idx=False)
        for name, x in batch.extra.items():
            if x.ndim == 1 and x.is_floating_point():
                own = x[~followed(batch) & ~x.isnan()]  # one row an episode
                total, count = self.sum_over_ranks(torch.stack([own.sum(), x.new_tensor(len(own))]))
                if count > 0:
                    self.log(f"{stage}/{name}{how}", total / count, batch_size=len(batch), add_dataloader_idx=False)

    def evaluate(self, batch: Batch) -> Evaluation:
        where = batch.mask if batch.expert_mask is None else batch.mask | batch.expert_mask
        if not where.any():  # a rank with nothing to learn from still takes part in every all-reduce
            where = torch.zeros_like(where).index_fill(1, torch.zeros(1, dtype=torch.long, device=where.device), True)
        features = self.policy.features(batch.obs, where)
        distribution = self.policy.distribution(features)
        log_probs = distribution.log_prob(batch.actions[where])
        values = self.critic(batch, where, features)
        return Evaluation(
            where, distribution, scattered(log_probs, where), None if values is None else scattered(values, where)
        )

    @torch.no_grad()
    def act(
        self, obs: Tensor, state: Any = None, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """`Actor.act`. Values are left to `prepare`, which computes them in one pass."""
        with self.acting():
            distribution, state = self.policy.step(obs.to(self.device), state)
            actions = distribution.mode if deterministic else distribution.sample()
            return actions, distribution.log_prob(actions), None, state

    @torch.no_grad()
    def values(self, obs: Tensor) -> Tensor:
        """`Actor.values`."""
        value = getattr(self, "value", None)
        if value is None:
            raise ValueError("takeover: it asks what states are worth, and the model has no value network")
        with self.acting():
            return value(obs.to(self.device)[:, None])[:, 0]

    @torch.no_grad()
    def token_values(self, batch: Batch) -> Tensor:
        """`Actor.token_values`."""
        batch = batch.to(self.device)
        with self.acting():
            values = self.critic(batch, batch.valid)
        if values is None:
            raise ValueError("takeover: it asks what tokens are worth, and the model has no value network")
        return scattered(values.float(), batch.valid)

    @torch.no_grad()
    def reply(self, ids: Tensor, lengths: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """`Actor.reply`."""
        with self.acting():
            return generation.reply(self.policy, ids.to(self.device), lengths.to(self.device), state, **how)
