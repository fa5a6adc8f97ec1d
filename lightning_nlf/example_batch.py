"""Synthetic example batch with every kind of feedback, for trying any objective. Used by `describe` and by tests."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.distributions import params_of
from lightning_nlf.maths.steps import last_valid
from lightning_nlf.networks import Network, Policy

LENGTHS = (5, 4, 3, 4, 2, 5, 3, 4)  # lengths of the rows; if steps are tokens, each row also has a prompt of two steps
GROUPS = (0, 0, 0, 0, 1, 1, 1, 1)
RANKS = (0, 1, 1, -1, 2, 0, 1, -1)  # each group has one unranked row, and the first has a tie
SCORES = (1.0, 0.25, 0.25, 0.75, 0.0, 1.0, 0.5, 0.75)
EXPERT_ROWS = (3, 7)  # expected responses or revisions; the second also has a critique


def example_batch(network: Network, policy: Policy | None = None) -> Batch:
    """Eight rows in two groups that `network` can read, with every field that an objective may need.

    The fields are ranks with a tie, scores and rewards in [0, 1], labels, expected responses, revisions, a critique, a
    view, ends of steps and the expert's distribution. `log_probs` come from the policy, and are 0 without a policy.
    Raises: ValueError: the network has neither a `vocabulary` nor an `obs_dim`.
    """
    rows = torch.arange(len(LENGTHS))
    obs, actions, final_obs, begin = _tokens(network) if network.vocabulary else _states(network, policy)
    steps = torch.arange(obs.shape[1])
    valid = (steps >= begin) & (steps < begin + torch.tensor(LENGTHS)[:, None])
    expert = torch.isin(rows, torch.tensor(EXPERT_ROWS))
    score = torch.tensor(SCORES)
    batch = Batch(
        obs=obs,
        actions=actions,
        valid=valid,
        mask=valid & ~expert[:, None],
        rewards=torch.where(last_valid(valid), score[:, None], 0),
        log_probs=torch.zeros(valid.shape),
        final_obs=final_obs,
        terminated=torch.ones(len(rows), dtype=torch.bool),
        expert_actions=actions,
        expert_mask=valid & expert[:, None],
        group=torch.tensor(GROUPS),
        rank=torch.tensor(RANKS),
        score=score,
        view=Batch(obs, actions, valid, torch.zeros_like(valid)),
        extra={
            "label": score > 0.5,
            "scored": ~expert,
            "revision": expert,
            "attempt": ~expert,
            "critique": rows == EXPERT_ROWS[1],
            "preference": torch.full(score.shape, 0.8),
            "step_ends": last_valid(valid),
        },
    )
    return batch if policy is None else _as_acted(batch, policy)


def _tokens(network: Network) -> tuple[Tensor, Tensor, Tensor, int]:
    assert network.vocabulary is not None
    width = max(LENGTHS) + 2
    ids = torch.arange(len(LENGTHS) * width).view(-1, width) % network.vocabulary
    return ids[:, :-1], ids[:, 1:], ids[:, -1], 1


def _states(network: Network, policy: Policy | None) -> tuple[Tensor, Tensor, Tensor, int]:
    size = getattr(network, "obs_dim", None)
    if size is None:
        raise ValueError(
            f"{type(network).__name__}: cannot make example rows; the network needs a `vocabulary` or an `obs_dim`"
        )
    count, width = len(LENGTHS), max(LENGTHS)
    obs = torch.linspace(-1, 1, count * width * size).view(count, width, size)
    with torch.no_grad():
        actions = obs[..., :1] if policy is None else policy(obs).mode + 0.1
    return obs, actions, obs[:, -1], 0


@torch.no_grad()
def _as_acted(batch: Batch, policy: Policy) -> Batch:
    distribution = policy(batch.obs)
    log_probs = torch.where(batch.valid, distribution.log_prob(batch.actions), 0)
    return replace(batch, log_probs=log_probs, expert_params=params_of(distribution))
