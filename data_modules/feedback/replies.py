"""The tokens of a response, and of these the last ones of its steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from data_modules.judgements.schema import Judgement
from data_modules.text.tokenizer import Tokenizer


def reply_of(judgement: Judgement, i: int, tokenizer: Tokenizer, ends: Sequence[int]) -> tuple[list[int], list[int]]:
    """The ids of response i, its stop token too if it ended by itself, and the places of the tokens that end a step.

    Args: ends: the number of characters at which each step ends.
    Raises:
        ValueError: a text that the tokenizer cannot encode; `meta` or `steps` that do not fit the response.
    """
    sampled = _sampled(judgement, i, tokenizer)
    if sampled is not None:
        return sampled, _places(sampled, ends, tokenizer)
    ids, places = _encoded(judgement.responses[i], ends, tokenizer)
    return ids + [tokenizer.eos] * judgement.finished(i), places


def _sampled(judgement: Judgement, i: int, tokenizer: Tokenizer) -> list[int] | None:
    """The ids that were sampled, if `meta` kept them and the tokenizer is the same: text may not give them back."""
    tokens = judgement.meta.get("tokens")
    if tokens is None or judgement.meta.get("tokenizer") != tokenizer.digest:
        return None
    ids = tokens[i] if isinstance(tokens, list) and len(tokens) == len(judgement.responses) else None
    if not isinstance(ids, list) or not ids or not all(type(x) is int and x >= 0 for x in ids):
        raise ValueError("meta: tokens must be a list of ids for each response")
    return ids


def _places(ids: list[int], ends: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The place of the token with which each step ends: the first by which so many characters are said."""
    places = [
        bisect_left(range(len(ids)), end, key=lambda place: len(tokenizer.decode(ids[: place + 1]))) for end in ends
    ]
    if len(set(places)) < len(places) or len(ids) in places:
        raise ValueError("steps: they do not fit the tokens in meta; take these out where a response was changed")
    return places


def _encoded(response: str, ends: Sequence[int], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids, and the place of the last one of each step.

    Encoded step by step, so that no token goes across the end of one.
    """
    ids: list[int] = []
    places: list[int] = []
    for start, end in zip([0, *ends], [*ends, len(response)], strict=True):
        step = tokenizer.encode_reply(response[start:end]) if start < end else []
        ids += step
        if len(places) < len(ends):
            if not step:
                raise ValueError(f"steps: {response[start:end]!r} has no token; let the step before end later")
            places.append(len(ids) - 1)
    return ids, places
