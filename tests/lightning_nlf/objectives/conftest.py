"""Batches of replies to prompts, and properties that every objective must have on them."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Categorical

from lightning_nlf.batch import Batch, pad_steps
from lightning_nlf.maths.means import row_counts, stamp_totals
from lightning_nlf.networks import GRUPolicy, Policy

VOCABULARY = 11


def replies_to(groups, lengths, **fields):
    """Rows of random tokens. The rows of a group share a prompt of 2 + group tokens; `lengths` are of the replies."""
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


def rounds_of(groups, lengths, revisions, earned, has_feedback, **fields):
    """`replies_to` with some `revisions`, and the return of each row.

    The view of rows with feedback has 3 more tokens before the prompt, and 1 more in odd rows.
    """
    rows = replies_to(groups, lengths)
    revision = torch.tensor(revisions)[:, None].bool()
    steps = rows.valid * torch.arange(rows.valid.shape[1])
    last = torch.nn.functional.one_hot(steps.argmax(1), rows.valid.shape[1])
    generator = torch.Generator().manual_seed(5)
    rows = replace(
        rows,
        mask=rows.valid & ~revision,
        expert_mask=rows.valid & revision,
        expert_actions=rows.actions,
        rewards=last * torch.tensor(earned, dtype=torch.float)[:, None],
        log_probs=-torch.rand(rows.valid.shape, generator=generator) * rows.valid,
        extra={"revision": revision[:, 0], "attempt": ~revision[:, 0]},
        view=after_feedback(rows, torch.tensor(has_feedback)[:, None].bool(), generator),
    )
    return replace(rows, **fields)


def after_feedback(rows, has_feedback, generator):
    """The same rows after 3 or 4 more tokens."""
    count, width = rows.valid.shape[0], rows.valid.shape[1] + 4
    tokens = torch.randint(1, VOCABULARY, (count, 4), generator=generator)
    before = [3 + row % 2 for row in range(count)]

    def moved_by(x):
        return torch.stack([row.roll(n) for row, n in zip(pad_steps(x, width), before, strict=True)])

    begins = torch.arange(width) < torch.tensor(before)[:, None]
    obs = torch.where(begins, pad_steps(tokens, width), moved_by(rows.obs))
    valid = moved_by(rows.valid) & has_feedback
    return Batch(obs=obs, actions=moved_by(rows.actions), valid=valid, mask=torch.zeros_like(valid))


class LookupPolicy(Policy):
    """Policy whose next token depends on the last token only: `probabilities` (V, V), one row per token."""

    def __init__(self, probabilities):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(probabilities).log())

    def features(self, obs, where=None):
        return self.scores[obs if where is None else obs[where]]

    def distribution(self, features):
        return Categorical(logits=features, validate_args=False)


def gru_policy(seed=0):
    torch.manual_seed(seed)
    return GRUPolicy(VOCABULARY, width=8)


def moved(module, seed=1):
    """Move the policy of a module away from its reference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.policy.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return module


def objective_terms(module, batch):
    prepared = module.prepare(batch)
    return module.losses(prepared, module.evaluate(prepared))


def objective_loss(module, batch):
    return sum(objective_terms(module, batch).values())


def gradient_of(module, parts):
    """Gradient of the mean loss of prepared batches, flat."""
    module.zero_grad()
    for part in parts:
        (sum(module.losses(part, module.evaluate(part)).values()) / len(parts)).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def micro_batches(prepared, parts):
    """Split rows by index into the stamped micro-batches of one optimizer step."""
    totals = {name: count.sum().float() for name, count in row_counts(prepared).items()}
    return stamp_totals([prepared[torch.tensor(rows)] for rows in parts], totals, len(parts))


def padded(batch, columns=3):
    """Add padding steps of random tokens."""
    width = batch.mask.shape[1] + columns

    def longer(x):
        return pad_steps(x, width) if x.ndim > 1 else x

    extra = {name: longer(x) for name, x in batch.extra.items()}
    wide = replace(replace(batch, view=None).map(longer), extra=extra)
    noise = torch.randint(1, VOCABULARY, (len(batch), columns), generator=torch.Generator().manual_seed(3))
    obs, actions = wide.obs.clone(), wide.actions.clone()
    obs[:, -columns:], actions[:, -columns:] = noise, noise
    return replace(wide, obs=obs, actions=actions, view=None if batch.view is None else padded(batch.view, columns + 1))


@pytest.fixture
def text():
    """The functions above as one fixture."""
    return Text


class Text:
    replies_to = staticmethod(replies_to)
    rounds_of = staticmethod(rounds_of)
    lookup_policy = staticmethod(LookupPolicy)
    gru_policy = staticmethod(gru_policy)
    moved = staticmethod(moved)
    terms = staticmethod(objective_terms)
    loss = staticmethod(objective_loss)
    gradient_of = staticmethod(gradient_of)
    micro_batches = staticmethod(micro_batches)
    padded = staticmethod(padded)
