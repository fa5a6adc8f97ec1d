"""Replies to prompts, as rows of a batch; and what every objective on them must hold."""

from dataclasses import replace

import pytest
import torch

from lightning_nlf.batch import Batch, pad_steps
from lightning_nlf.functional import row_counts, stamp_totals
from lightning_nlf.networks import GRUPolicy

VOCABULARY = 11


def replies_to(groups, lengths, **fields):
    """Rows of random tokens: those of a group share a prompt of 2 + group tokens; lengths are the replies'."""
    generator = torch.Generator().manual_seed(0)
    prompts = {g: torch.randint(1, VOCABULARY, (2 + g,), generator=generator).tolist() for g in range(max(groups) + 1)}
    texts = [
        prompts[g] + torch.randint(1, VOCABULARY, (n,), generator=generator).tolist()
        for g, n in zip(groups, lengths, strict=True)
    ]
    width = max(map(len, texts)) - 1
    ids = torch.tensor([text + [0] * (width + 1 - len(text)) for text in texts])
    steps = torch.arange(width)
    begin = torch.tensor([1 + g for g in groups])[:, None]
    mask = (steps >= begin) & (steps < begin + torch.tensor(lengths)[:, None])
    rows = Batch(
        obs=ids[:, :-1],
        actions=ids[:, 1:],
        valid=mask,
        mask=mask,
        final_obs=torch.tensor([text[-1] for text in texts]),
        terminated=torch.ones(len(texts), dtype=torch.bool),
        group=torch.tensor(groups),
    )
    return replace(rows, **fields)


def gru_policy(seed=0):
    torch.manual_seed(seed)
    return GRUPolicy(VOCABULARY, width=8)


def moved(module, seed=1):
    """The module with a policy that is no longer the reference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.policy.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return module


def objective_terms(module, batch):
    prepared = module.prepare(batch)
    return module.terms(prepared, module.evaluate(prepared))


def objective_loss(module, batch):
    return sum(objective_terms(module, batch).values())


def gradient_of(module, parts):
    """Of the mean loss of prepared batches, flat."""
    module.zero_grad()
    for part in parts:
        (sum(module.terms(part, module.evaluate(part)).values()) / len(parts)).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def micro_batches(prepared, parts):
    """Row indices → the stamped micro-batches of one optimizer step."""
    totals = {name: count.sum().float() for name, count in row_counts(prepared).items()}
    return stamp_totals([prepared[torch.tensor(rows)] for rows in parts], totals, len(parts))


def padded(batch, more=3):
    """With steps behind, of tokens that mean nothing."""
    width = batch.mask.shape[1] + more

    def longer(x):
        return pad_steps(x, width) if x.ndim > 1 else x

    wide = replace(batch.map(longer), extra={name: longer(x) for name, x in batch.extra.items()})
    noise = torch.randint(1, VOCABULARY, (len(batch), more), generator=torch.Generator().manual_seed(3))
    obs, actions = wide.obs.clone(), wide.actions.clone()
    obs[:, -more:], actions[:, -more:] = noise, noise
    return replace(wide, obs=obs, actions=actions)


@pytest.fixture
def text():
    """The functions above, by one name."""
    return Text


class Text:
    replies_to = staticmethod(replies_to)
    gru_policy = staticmethod(gru_policy)
    moved = staticmethod(moved)
    terms = staticmethod(objective_terms)
    loss = staticmethod(objective_loss)
    gradient_of = staticmethod(gradient_of)
    micro_batches = staticmethod(micro_batches)
    padded = staticmethod(padded)
