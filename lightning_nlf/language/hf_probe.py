"""Probe of a transformers model: whether it scores a token alike in sampling and in learning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-3  # of the scores' standard deviation: rounding stays below 1e-5, other distances reach 1e-2
LONGEST_WINDOW = 64  # tokens; what lies beyond a larger window is not tried
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size", "attention_window_size", "local_attention")


class Unsuitable(ValueError):
    """A model that cannot be sampled from, or not so that learning sees the same."""


@contextmanager
def refused_if_it_fails(config: Any, how: str = "here") -> Iterator[None]:
    """Around a model's first forward passes; `how` says in the message what could not be done.

    Raises:
        Unsuitable: it raises anything.
    """
    try:
        yield
    except Unsuitable:
        raise
    except Exception as error:  # whatever a foreign model raises at two tokens: it is told as its cause
        reason = (str(error).strip().splitlines() or [""])[0]
        raise Unsuitable(
            f"weights: a {config.model_type} cannot be read {how} ({type(error).__name__}: {reason}): "
            "use a model of another architecture"
        ) from error


@torch.no_grad()
def refuse_other_distances(policy: Any) -> None:
    """Two rows of different lengths, read in turns, against all of their tokens at once.

    Raises:
        Unsuitable: the scores differ.
        Exception: the model keeps no keys and values of every token: whatever it raises then.
    """
    if next(policy.parameters()).is_meta:  # there is nothing to try
        return
    training, kind = policy.training, policy.config["model_type"]
    policy.eval()
    rows: tuple[list[int], list[int]] = ([], [])
    state, differences, spread = None, [], []
    for turn, lengths in enumerate(_turns(policy)):
        new = _ids(turn, max(lengths), policy)
        scores, state = policy.read(new, torch.tensor(lengths, device=new.device), state)
        if any(layer.keys.shape[2] != state.used.shape[1] for layer in state.cache.layers):
            raise LookupError("a layer keeps fewer of them")
        for row, length in enumerate(lengths):
            rows[row].extend(new[row, :length].tolist())
            if length:
                whole = policy.scores(policy.features(torch.tensor([rows[row]], device=new.device)))[0, -1]
                differences.append((scores[row] - whole).abs().max())
                spread.append(whole.std())
    policy.train(training)
    worst, scale = float(torch.stack(differences).max()), float(torch.stack(spread).max())
    if not worst <= TOLERANCE * max(scale, 1e-6):
        raise Unsuitable(
            f"weights: a {kind} read in turns gives scores that differ by {worst:.2g} from those of the whole row "
            f"(they spread by {scale:.2g}), so it would learn about another policy than the one that sampled: "
            "use a model of another architecture"
        )


@torch.no_grad()
def refuse_looking_ahead(network: Any) -> None:
    """The states of a row's beginning, alone and with more behind it.

    Raises:
        Unsuitable: they differ: the model does not read from left to right.
    """
    if next(network.parameters()).is_meta:
        return
    training = network.training
    network.eval()
    ids = _ids(0, min(4, network.context or 4), network)
    whole, begin = network.states(ids, None)[:, :1], network.states(ids[:, :1], None)
    network.train(training)
    if not torch.allclose(whole, begin, rtol=TOLERANCE, atol=TOLERANCE):
        kind = network.config["model_type"]
        raise Unsuitable(f"weights: a {kind} sees tokens that come later: use a model that reads from left to right")


def _turns(policy: Any) -> list[tuple[int, int]]:
    """What the two rows read: past the window if it is small, and then again in rows that stopped at other times."""
    windows = [value for name in WINDOWS if isinstance(value := policy.config.get(name), int) and value > 0]
    first = min([size for size in windows if size <= LONGEST_WINDOW], default=4) + 3
    turns = [(first, 3), (2, 6), (1, 0), (1, 1), (1, 2)]
    room = policy.context or sum(turn[0] for turn in turns)
    kept, read = [], [0, 0]
    for turn in [(min(first, max(room - 5, 1)), min(3, max(room - 9, 1))), *turns[1:]]:
        if all(before + new <= room for before, new in zip(read, turn, strict=True)):
            kept.append(turn)
            read = [before + new for before, new in zip(read, turn, strict=True)]
    return kept


def _ids(turn: int, width: int, network: Any) -> Tensor:
    """(2, width) tokens, without a draw: a run draws what it drew before."""
    first = torch.arange(2 * width).view(2, width) * 7 + 11 * turn + 3
    return (first % network.vocabulary).to(next(network.parameters()).device)
