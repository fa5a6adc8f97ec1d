"""Expert labels for tokens: the distribution that the expert would have sampled from at each step."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_nlf.batch import Batch, TextExpert


@runtime_checkable
class Labeller(Protocol):
    """An expert that gives its distribution over tokens (`TextExpert.label`). It need not be able to write replies."""

    def label(self, obs: Tensor, where: Tensor) -> tuple[Tensor, dict[str, Tensor]]: ...


def labelled(batch: Batch, expert: TextExpert, device: torch.device) -> Batch:
    """Label every step that is valid or imitated with the expert's distribution over tokens.

    At steps of the learner `expert_actions` becomes a sample of that distribution; elsewhere it does not change.
    """
    assert batch.expert_mask is not None and batch.expert_actions is not None
    where = batch.valid | batch.expert_mask
    samples, params = expert.label(batch.obs.to(device), where.to(device))
    actions = batch.expert_actions.masked_scatter(where, samples.to(batch.obs.device))
    return replace(
        batch,
        expert_actions=torch.where(batch.mask, actions, batch.expert_actions),
        expert_mask=where,
        expert_params={name: _placed(x.to(batch.obs.device), where) for name, x in params.items()},
    )


def densities(batch: Batch, expert: Labeller, steps: Tensor, device: torch.device) -> Tensor:
    """`batch.log_probs` (B, T), with the expert's log-probability of the action at each True step of `steps` (B, T)."""
    assert batch.log_probs is not None
    _, params = expert.label(batch.obs.to(device), steps.to(device))
    expert_log_probs = params["logits"].cpu().gather(-1, batch.actions[steps][:, None])[:, 0]
    return batch.log_probs.masked_scatter(steps, expert_log_probs)


def _placed(x: Tensor, where: Tensor) -> Tensor:
    """Place the N entries of x (N, …) at the True steps of `where` (B, T), with 0 elsewhere, as (B, T, …)."""
    return x.new_zeros(*where.shape, *x.shape[1:]).index_put((where,), x)
