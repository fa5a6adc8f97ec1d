"""Token ids of a response, and the positions of the tokens that end the response's labelled steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from data_modules.judgements.schema import Judgement
from data_modules.text.tokenizer import Tokenizer


def reply_of(judgement: Judgement, i: int, tokenizer: Tokenizer, ends: Sequence[int]) -> tuple[list[int], list[int]]:
    """The token ids of response i, and the position of the token that ends each step.

    The ids include the stop token unless the response was cut off.

    Args: ends: the end of each step, in characters.
    Raises:
        ValueError: the tokenizer cannot encode the text, or `meta` or `steps` do not fit the response.
    """
    sampled = _sampled(judgement, i, tokenizer)
    if sampled is not None:
        return sampled, _places(sampled, ends, tokenizer)
    ids, places = _encoded(judgement.responses[i], ends, tokenizer)
    return ids + [tokenizer.eos] * judgement.finished(i), places


def _sampled(judgement: Judgement, i: int, tokenizer: Tokenizer) -> list[int] | None:
    """The sampled ids, if `meta` has them and the tokenizer is the same; encoding the text may give different ids."""
    tokens = judgement.meta.get("tokens")
    if tokens is None or judgement.meta.get("tokenizer") != tokenizer.digest:
        return None
    ids = tokens[i] if isinstance(tokens, list) and len(tokens) == len(judgement.responses) else None
    if not isinstance(ids, list) or not ids or not all(type(x) is int and x >= 0 for x in ids):
        raise ValueError("meta: tokens must be a list of ids for each response")
    return ids


def _places(ids: list[int], ends: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Position of the token that ends each step: the first token up to which the ids decode to the whole step."""
    places = [
        bisect_left(range(len(ids)), end, key=lambda place: len(tokenizer.decode(ids[: place + 1]))) for end in ends
    ]
    if len(set(places)) < len(places) or len(ids) in places:
        raise ValueError("steps: they do not fit the tokens in meta; remove meta.tokens if a response was edited")
    return places


def _encoded(response: str, ends: Sequence[int], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Encode a response; return its token ids, and the position of the last token of each step.

    Each step is encoded separately, so that no token crosses the end of a step.
    """
    ids: list[int] = []
    places: list[int] = []
    for start, end in zip([0, *ends], [*ends, len(response)], strict=True):
        step = tokenizer.encode_reply(response[start:end]) if start < end else []
        ids += step
        if len(places) < len(ends):
            if not step:
                raise ValueError(f"steps: {response[start:end]!r} has no token; merge it with the step before")
            places.append(len(ids) - 1)
    return ids, places
