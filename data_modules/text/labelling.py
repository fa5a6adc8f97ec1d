"""What an expert would have said where somebody else spoke."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_nlf.batch import Batch, TextExpert


@runtime_checkable
class Labeller(Protocol):
    """An expert that says how likely tokens are (`TextExpert.label`), whether or not it replies."""

    def label(self, obs: Tensor, where: Tensor) -> tuple[Tensor, dict[str, Tensor]]: ...


def labelled(batch: Batch, expert: TextExpert, device: torch.device) -> Batch:
    """With the expert's distribution on every step that somebody decided or is imitated on.

    Where the learner acted, `expert_actions` is a draw from it; where an expert did, what that one said.
    """
    assert batch.expert_mask is not None and batch.expert_actions is not None
    where = batch.valid | batch.expert_mask
    said, params = expert.label(batch.obs.to(device), where.to(device))
    drawn = batch.expert_actions.masked_scatter(where, said.to(batch.obs.device))
    return replace(
        batch,
        expert_actions=torch.where(batch.mask, drawn, batch.expert_actions),
        expert_mask=where,
        expert_params={name: _placed(x.to(batch.obs.device), where) for name, x in params.items()},
    )


def densities(batch: Batch, expert: Labeller, steps: Tensor, device: torch.device) -> Tensor:
    """`batch.log_probs` (B, T), with the expert's own of what was said at the True `steps` (B, T)."""
    assert batch.log_probs is not None
    _, params = expert.label(batch.obs.to(device), steps.to(device))
    said = params["logits"].cpu().gather(-1, batch.actions[steps][:, None])[:, 0]
    return batch.log_probs.masked_scatter(steps, said)


def _placed(x: Tensor, where: Tensor) -> Tensor:
    """x (N, …) at the N True steps of `where` (B, T), 0 elsewhere.  (B, T, …)"""
    return x.new_zeros(*where.shape, *x.shape[1:]).index_put((where,), x)
