"""Test of a transformers model: tokens must get the same scores in sampling and in learning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-3  # in standard deviations of the scores: rounding gives less than 1e-5, wrong positions at least 1e-2
LONGEST_WINDOW = 64  # tokens; larger windows are not tested
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size", "attention_window_size", "local_attention")


class Unsuitable(ValueError):
    """The model cannot be sampled from, or gives different scores in learning and in sampling."""


@contextmanager
def refused_if_it_fails(config: Any, how: str = "here") -> Iterator[None]:
    """Context manager for a model's first forward passes. `how` completes the error message.

    Raises:
        Unsuitable: any exception is raised inside.
    """
    try:
        yield
    except Unsuitable:
        raise
    except Exception as error:  # a foreign model may raise any error, which is kept as the cause
        reason = (str(error).strip().splitlines() or [""])[0]
        raise Unsuitable(
            f"weights: a {config.model_type} cannot be read {how} ({type(error).__name__}: {reason}); use a model of "
            "another architecture"
        ) from error


@torch.no_grad()
def refuse_other_distances(policy: Any) -> None:
    """Refuse a policy whose scores change if two rows of different lengths are read in several turns.

    Raises:
        Unsuitable: the scores differ from the scores of the whole rows.
        Exception: the model does not keep keys and values of every token. The type of the error depends on the model.
    """
    if next(policy.parameters()).is_meta:  # a model without weights cannot be tested
        return
    training, kind = policy.training, policy.config["model_type"]
    policy.eval()
    rows: tuple[list[int], list[int]] = ([], [])
    state, differences, spread = None, [], []
    for turn, lengths in enumerate(_turns(policy)):
        new = _ids(turn, max(lengths), policy)
        scores, state = policy.read(new, torch.tensor(lengths, device=new.device), state)
        if any(layer.keys.shape[2] != state.used.shape[1] for layer in state.cache.layers):
            raise LookupError("a layer has fewer columns than tokens")
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
            f"weights: a {kind} read in turns gives scores that differ by {worst:.2g} from those of the whole "
            f"row (their spread is {scale:.2g}), so the learner would differ from the policy that sampled; use a model "
            "of another architecture"
        )


@torch.no_grad()
def refuse_looking_ahead(network: Any) -> None:
    """Refuse a model whose states depend on later tokens.

    Raises:
        Unsuitable: the first state changes if more tokens follow, so the model is not causal.
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
        raise Unsuitable(f"weights: a {kind} sees later tokens; use a causal model, which reads from left to right")


def _turns(policy: Any) -> list[tuple[int, int]]:
    """Numbers of tokens that the two rows read in each turn.

    The first turn exceeds a small window; later turns differ by row.
    """
    windows = [value for name in WINDOWS if isinstance(value := policy.config.get(name), int) and value > 0]
    first = min([size for size in windows if size <= LONGEST_WINDOW], default=4) + 3
    turns = [(first, 3), (2, 6), (1, 0), (1, 1), (1, 2)]
    room = policy.context or sum(turn[0] for turn in turns)
    selected, read = [], [0, 0]
    for turn in [(min(first, max(room - 5, 1)), min(3, max(room - 9, 1))), *turns[1:]]:
        if all(before + new <= room for before, new in zip(read, turn, strict=True)):
            selected.append(turn)
            read = [before + new for before, new in zip(read, turn, strict=True)]
    return selected


def _ids(turn: int, width: int, network: Any) -> Tensor:
    """Fixed tokens (2, width). They are not random, so that the random state does not change."""
    first = torch.arange(2 * width).view(2, width) * 7 + 11 * turn + 3
    return (first % network.vocabulary).to(next(network.parameters()).device)
