"""The token loop: one turn of text from a policy that reads what is new and keeps its state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_nlf.networks import Policy


def reply(
    policy: Policy, ids: Tensor, lengths: Tensor, state: Any, stop: int, max_new: int, deterministic: bool = False
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Sample until `stop`, which is kept, or for `max_new` tokens.

    Args:
        ids: (B, L) what is new since `state`, right-padded; lengths: (B,), each ≥ 1.
    Returns: tokens (B, N), right-padded with `stop`; log_probs (B, N), 0 on padding; lengths (B,); the state,
        which has not read the last token.
    """
    batch = len(ids)
    running = torch.ones(batch, dtype=torch.bool, device=ids.device)
    count = torch.zeros(batch, dtype=torch.long, device=ids.device)
    tokens, log_probs = [], []
    for _ in range(max_new):
        distribution, following = policy.read(ids, lengths, state)
        # A finished row's state must stay where its last token was drawn: the next turn goes on from there.
        state = following if state is None else policy.keep(running, following, state)
        sampled = distribution.mode if deterministic else distribution.sample()
        token = torch.where(running, sampled, stop)
        tokens.append(token)
        log_probs.append(torch.where(running, distribution.log_prob(sampled), 0))
        count += running
        running = running & (token != stop)
        if not running.any():
            break
        ids, lengths = token[:, None], torch.ones_like(lengths)
    return torch.stack(tokens, 1), torch.stack(log_probs, 1), count, state
