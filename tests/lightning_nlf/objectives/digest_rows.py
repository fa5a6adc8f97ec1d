"""The synthetic rows of `test_digest.py`, by arithmetic alone: the same bits on every machine, in float64.

Each function gives one batch. Four groups of prompts of different lengths, rows of different lengths, padding.
"""

import math
from dataclasses import replace

import torch
from torch.nn.functional import one_hot

from lightning_nlf.batch import Batch

VOCABULARY, OBS, ACTION = 11, 3, 2
GROUPS = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
LENGTHS = [3, 5, 2, 4, 1, 6, 2, 7, 3, 4, 5, 1, 3]
EARNED = [1.0, 0.2, 0.4, 0.9, 0.5, 0.0, 0.3, 0.3, 0.3, 0.3, 1.2, -0.4, 0.7]  # the third group is all equal
RANKS = [0, 1, 1, 2, 0, -1, 1, 0, 2, 2, -1, 0, 1]
PARTS = {1: [[0, 1, 2, 3]], 3: [[0], [1, 2], [3]]}  # groups of each micro-batch


def wave(*shape, phase=0.0):
    """Numbers between −1 and 1."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.3 + phase).reshape(shape)


def numbers(values):
    return torch.tensor(values, dtype=torch.float64)


def rows_where(*rows):
    chosen = torch.zeros(len(GROUPS), dtype=torch.bool)
    chosen[list(rows)] = True
    return chosen


def last_of(valid):
    steps = torch.arange(valid.shape[1])
    return one_hot((valid * steps).argmax(1), valid.shape[1]).bool() & valid


# ---- text


def opinions(rows):
    """What an expert makes of every token, unnormalised."""
    return {"logits": 2 * wave(*rows.valid.shape, VOCABULARY, phase=0.7)}


def replies(before=None):
    """Token ids; row i has `before[i]` more tokens in front of its prompt, and none of its steps where it is None."""
    front = [0] * len(GROUPS) if before is None else [n or 0 for n in before]
    texts, begins = [], []
    for row, (g, length) in enumerate(zip(GROUPS, LENGTHS, strict=True)):
        prompt = [1 + (4 * row + 3 * k) % 10 for k in range(front[row])] + [
            1 + (3 * g + 5 * k) % 10 for k in range(2 + g)
        ]
        texts.append(prompt + [1 + (7 * row + 3 * k * k + k) % 10 for k in range(length)])
        begins.append(len(prompt) - 1)
    width = max(map(len, texts)) + 1  # one column is of padding only
    ids = torch.tensor([text + [0] * (width + 1 - len(text)) for text in texts])
    steps, begin = torch.arange(width), torch.tensor(begins)[:, None]
    valid = (steps >= begin) & (steps < begin + torch.tensor(LENGTHS)[:, None])
    if before is not None:
        valid = valid & torch.tensor([n is not None for n in before])[:, None]
    return Batch(
        obs=ids[:, :-1],
        actions=ids[:, 1:],
        valid=valid,
        mask=valid if before is None else torch.zeros_like(valid),
        final_obs=None if before is not None else torch.tensor([text[-1] for text in texts]),
        terminated=None if before is not None else ~rows_where(1, 8),
        group=None if before is not None else torch.tensor(GROUPS),
    )


def rollout():
    """What the learner said, rewarded at the end, two rows truncated."""
    rows = replies()
    acted = (-2.4 + 0.4 * wave(*rows.valid.shape)) * rows.valid
    extra = {"attempt": rows.valid.any(1), "fluency": torch.where(rows_where(4), math.nan, wave(len(rows), phase=0.3))}
    return replace(rows, rewards=last_of(rows.valid) * numbers(EARNED)[:, None], log_probs=acted, extra=extra)


def parted():
    """Episodes of several rows, with rewards on the way."""
    rows = rollout()
    parts = {
        "episode": torch.tensor([0, 0, 1, 2, 3, 2, 4, 5, 5, 5, 6, 7, 8]),
        "part": torch.tensor([1, 0] + [0] * 3 + [1] + [0] * 2 + [2, 1] + [0] * 3),
    }
    return replace(rows, rewards=rows.rewards + 0.1 * wave(*rows.valid.shape) * rows.valid, extra=rows.extra | parts)


def injected():
    """Take-overs in the middle of rows, rows of the expert's alone, and labels on the learner's own steps."""
    rows = rollout()
    step = rows.valid.cumsum(1) - 1
    taken = torch.tensor([9, 2, 9, 1, 9, 3, 9, 4, 9, 9, 2, 9, 0])[:, None]
    mask = rows.valid & (step < taken)
    labels = rows.valid & rows_where(2, 8)[:, None] & (step > 0)
    known = rows.valid & ~mask | labels
    said = torch.where(labels, rows.actions % 10 + 1, rows.actions)
    return replace(
        rows,
        mask=mask,
        expert_mask=known,
        expert_actions=torch.where(known, said, 0),
        expert_params=opinions(rows),
    )


def expected():
    """One row of each group is what the teacher expected, with a score."""
    rows = rollout()
    teacher = rows_where(2, 4, 9, 12)[:, None]
    return replace(
        rows,
        mask=rows.valid & ~teacher,
        expert_mask=rows.valid & teacher,
        expert_actions=rows.actions,
        expert_params=opinions(rows),
        score=numbers(EARNED),
    )


def viewed():
    """Every other row has been criticised: its view is behind the critique."""
    seen = rows_where(0, 1, 4, 5, 7, 8, 9, 11)
    return replace(rollout(), view=replies([3 + row % 2 if seen[row] else None for row in range(len(seen))]))


def rounds():
    """Attempts and revisions of them."""
    rows = viewed()
    revision = rows_where(1, 5, 7, 8, 12)
    return replace(
        rows,
        mask=rows.valid & ~revision[:, None],
        expert_mask=rows.valid & revision[:, None],
        expert_actions=rows.actions,
        expert_params=opinions(rows),
        extra=rows.extra | {"revision": revision, "attempt": ~revision},
    )


def ranked():
    """Rows of a file: ranks with ties and without, scores and labels, expected responses that nobody ranked."""
    rows = expected()
    teacher = (rows.expert_mask & ~rows.mask).any(1)
    scores = torch.where(rows_where(4, 5), math.nan, numbers(EARNED))
    return replace(
        rows,
        rewards=None,
        log_probs=None,
        rank=torch.where(teacher, -1, torch.tensor(RANKS)),
        score=scores,
        extra={"label": rows_where(0, 2, 4, 6, 9, 11, 12)},
    )


def ranked_in_full():
    """The same without a teacher's rows."""
    rows = ranked()
    return replace(
        rows, mask=rows.valid, expert_mask=None, expert_actions=None, expert_params=None, rank=torch.tensor(RANKS)
    )


def ranked_rollout():
    """Ranked where it was said: with rewards, and what the policy thought."""
    return replace(rollout(), rank=torch.tensor(RANKS))


def scored():
    """Rows of a file with scores and without rewards."""
    return replace(replies(), score=numbers(EARNED))


def demonstrations():
    """Rows of the expert's alone."""
    rows = replies()
    nobody = torch.zeros_like(rows.mask)
    known = rows.valid & ~rows_where(6)[:, None]
    return replace(rows, mask=nobody, expert_mask=known, expert_actions=rows.actions, expert_params=opinions(rows))


def mixed():
    """Each row has some of a score, a rank, an expected response, a critique."""
    rows = ranked()
    critique = rows_where(2, 9)
    has_score = rows_where(0, 1, 3, 6, 7, 10) & rows.mask.any(1)
    worth = torch.where(has_score, numbers(EARNED), 0)
    return replace(
        rows,
        score=torch.where(has_score, worth, math.nan),
        rewards=last_of(rows.valid) * worth[:, None],
        extra={"scored": has_score, "critique": critique},
    )


def judged():
    """Replies for a reward model: ranked, scored, and with how sure the teacher was."""
    sure = 0.5 + 0.45 * wave(len(GROUPS), phase=1.1).abs()
    return replace(
        replies(),
        rank=torch.tensor(RANKS),
        score=numbers(EARNED),
        extra={"preference": torch.where(rows_where(0, 6), math.nan, sure)},
    )


def step_labels():
    rows = replies()
    ends = rows.valid & (wave(*rows.valid.shape) > 0) | last_of(rows.valid) & rows_where(0, 3, 7)[:, None]
    labels = torch.where(wave(*rows.valid.shape, phase=2.0) > 0.2, 1.0, 0.25)
    return replace(rows, rewards=torch.where(ends, labels, 0), extra={"step_ends": ends})


def outcomes():
    known = ~rows_where(2, 5, 11)
    score = numbers([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.5, 1.0, 0.0, 1.0, 0.0, 1.0, 0.75])
    return replace(replies(), score=torch.where(known, score, math.nan), extra={"scored": known})


# ---- control


def played():
    """The learner's own episodes, rewarded at every step, some truncated."""
    count, width = len(GROUPS), max(LENGTHS) + 1
    valid = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    return Batch(
        obs=wave(count, width, OBS),
        actions=1.2 * wave(count, width, ACTION, phase=0.4),
        valid=valid,
        mask=valid,
        log_probs=(-2.2 + 0.8 * wave(count, width, phase=0.9)) * valid,
        rewards=wave(count, width, phase=1.7) * valid,
        final_obs=wave(count, OBS, phase=2.2),
        terminated=rows_where(0, 3, 4, 7, 10),
        group=torch.tensor(GROUPS),
    )


def taken_over():
    """Take-overs in the middle of episodes, episodes of the expert's alone, and labels on the learner's own steps."""
    rows = played()
    step = torch.arange(rows.valid.shape[1])
    taken = torch.tensor([9, 2, 9, 1, 9, 3, 9, 4, 9, 9, 2, 9, 0])[:, None]
    mask = rows.valid & (step < taken)
    labels = rows.valid & rows_where(2, 8, 9)[:, None]
    known = rows.valid & ~mask | labels
    wanted = torch.where(labels[..., None], wave(*rows.actions.shape, phase=2.9), rows.actions)
    return replace(
        rows,
        mask=mask,
        expert_mask=known,
        expert_actions=torch.where(known[..., None], wanted, 0),
        expert_params={
            "mean": torch.where(known[..., None], 0.7 * wave(*rows.actions.shape, phase=3.1), 0),
            "std": torch.where(known[..., None], 0.4 + 0.2 * wave(*rows.actions.shape, phase=3.7), 0),
        },
    )


def demonstrated():
    """Demonstrations of control, without rewards."""
    rows = taken_over()
    nobody = torch.zeros_like(rows.mask)
    return replace(rows, mask=nobody, rewards=None, log_probs=None)
