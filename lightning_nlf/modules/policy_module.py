"""Base module of policies: acts, samples replies, and evaluates the policy at the steps that terms need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_nlf.batch import Batch
from lightning_nlf.generators import Generator
from lightning_nlf.language import generation
from lightning_nlf.maths.kl import k3
from lightning_nlf.maths.parts import untrimmed
from lightning_nlf.maths.steps import episode_sums, followed, row_sums
from lightning_nlf.modules.objective_module import ObjectiveModule
from lightning_nlf.networks import Policy
from lightning_nlf.objective import Evaluation, hooks_of, scattered


class PolicyModule(ObjectiveModule):
    """Base module of policies: acts in environments, samples replies, and evaluates the steps that its terms need.

    Args: policy: the policy network.
    """

    def __init__(self, policy: Policy, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.policy = policy
        self.generator: Generator | None = None  # samples the replies instead of `policy`; set by `GenerationServer`
        self.return_metrics = nn.ModuleList([MeanMetric(), MeanMetric()])  # returns of the two evaluation loaders

    # ---- evaluation

    def assess(self, stage: str, batch: Batch, loader: int = 0) -> None:
        """Log returns and metrics of played episodes, or the loss terms of held-out rows."""
        if batch.rewards is None and not batch.metrics:
            self.assess_held_out(stage, batch)
        else:
            self.assess_played(stage, batch, loader)

    def assess_played(self, stage: str, batch: Batch, loader: int) -> None:
        """Log the return of played episodes. The first loader plays the mode of the policy, the second samples from it.

        Also logs the means of `Batch.metrics` and of each mixin's `episode_metrics`, by name. Each mean is over the
        episodes whose value is not NaN. The return is left out if episodes have no rewards.
        """
        metric, how = self.return_metrics[loader], ("", "_sampled")[loader]
        assert isinstance(metric, MeanMetric)
        if batch.rewards is not None:
            metric.update(
                episode_sums(row_sums(batch.rewards, batch.valid), batch)
            )  # reduces sums and counts over ranks
            self.log(f"{stage}/return{how}", metric, batch_size=len(batch), add_dataloader_idx=False)
        metrics = dict(batch.metrics)
        for _, hook in hooks_of(type(self), "episode_metrics"):
            metrics |= hook(self, batch, loader == 1)
        for name, x in metrics.items():
            one_row = x[~followed(batch) & ~x.isnan()]  # one row per episode
            total, count = self.sum_over_ranks(torch.stack([one_row.sum(), x.new_tensor(len(one_row))]))
            if count > 0:
                self.log(f"{stage}/{name}{how}", total / count, batch_size=len(batch), add_dataloader_idx=False)

    # ---- evaluating steps

    def read_steps(self, batch: Batch) -> Tensor:
        """(B, T) bool: the steps of the learner, of the expert, and of each mask of steps."""
        where = batch.mask if batch.expert_mask is None else batch.mask | batch.expert_mask
        for mask in batch.masks.values():
            where = where | mask if mask.ndim == 2 else where
        return where

    def evaluate(self, batch: Batch) -> Evaluation:
        where = self.read_steps(batch)
        if not where.any():  # a rank without such steps must still take part in every all-reduce
            where = torch.zeros_like(where).index_fill(1, torch.zeros(1, dtype=torch.long, device=where.device), True)
        features = self.policy.features(batch.obs, where)
        distribution = self.policy.distribution(features)
        log_probs = distribution.log_prob(batch.actions[where])
        values = self.critic(batch, where, features)
        return Evaluation(
            where, distribution, scattered(log_probs, where), None if values is None else scattered(values, where)
        )

    # ---- acting

    @torch.no_grad()
    def act(
        self, obs: Tensor, state: Any = None, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """`Actor.act`. Returns no values: `prepare` computes them in one pass."""
        with self.acting():
            distribution, state = self.policy.step(obs.to(self.device), state)
            actions = distribution.mode if deterministic else distribution.sample()
            return actions, distribution.log_prob(actions), None, state

    @torch.no_grad()
    def values(self, obs: Tensor) -> Tensor:
        """`Actor.values`."""
        value = getattr(self, "value", None)
        if value is None:
            raise ValueError("takeover: it depends on the value of states, but the model has no value network")
        with self.acting():
            return value(obs.to(self.device)[:, None])[:, 0]

    @torch.no_grad()
    def token_values(self, batch: Batch) -> Tensor:
        """`Actor.token_values`."""
        batch = batch.to(self.device)
        with self.acting():
            parts, read = self.reading_parts(batch.valid), []
            for rows in parts:
                part = untrimmed(batch, rows)
                values = self.critic(part, part.valid)
                if values is None:
                    raise ValueError("takeover: it depends on the value of tokens, but the model has no value network")
                read.append(scattered(values.float(), part.valid))
        return torch.cat(read)[torch.cat(parts).argsort()]

    @torch.no_grad()
    def token_log_probs(self, batch: Batch) -> Tensor:
        """`Actor.token_log_probs`."""
        batch = batch.to(self.device)
        with self.acting():
            distribution = self.policy.distribution(self.policy.features(batch.obs, batch.mask))
            return scattered(distribution.log_prob(batch.actions[batch.mask]).float(), batch.mask)

    @torch.no_grad()
    def reply(self, ids: Tensor, lengths: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """`Actor.reply`."""
        with self.acting():
            ids, lengths = ids.to(self.device), lengths.to(self.device)
            if self.generator is None:
                return generation.reply(self.policy, ids, lengths, state, **how)
            self.generator.follow(self.policy)
            return self.generator.reply(ids, lengths, state, **how)

    # ---- replies of a generation server

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """`Actor.prepare`. If a generation server sampled the replies, first compare its log-probabilities."""
        if self.generator is not None and batch.log_probs is not None:
            batch = self.compared(batch.to(self.device), batch.log_probs.to(self.device))
        return super().prepare(batch)

    def compared(self, batch: Batch, server: Tensor) -> Batch:
        """Replace the log-probabilities of a server (B, T) by the policy's at `mask`, and log how far they are apart.

        The batch gets `server_log_ratio` (B, T) in `extra`: log π_trainer − log π_server at `mask`, 0 elsewhere.
        """
        parts = self.reading_parts(batch.mask)
        read = torch.cat([self.token_log_probs(untrimmed(batch, rows)) for rows in parts])
        log_probs = read[torch.cat(parts).argsort()]
        log_ratio = torch.where(batch.mask, log_probs - server, 0)
        total, count = self.sum_over_ranks(torch.stack([k3(-log_ratio).sum(), batch.mask.sum()]))
        self.note("mismatch_kl", total / count.clamp(min=1))
        log_probs = torch.where(batch.mask, log_probs, server)
        return replace(batch, log_probs=log_probs).with_extra(server_log_ratio=log_ratio)
