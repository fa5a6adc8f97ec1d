"""Refuse a row longer than the context, and a token outside of the vocabulary."""

from __future__ import annotations

from torch import Tensor


def refuse_length(tokens: int, context: int, role: str, more: int = 0) -> None:
    """Raises ValueError: `tokens`, and so many `more` of a reply, do not fit the context of the network `role`."""
    if tokens + more > context:
        read = f"{tokens} tokens and a reply of up to {more + 1}" if more else f"{tokens} tokens"
        raise ValueError(
            f"shape.context: a row of {read} is longer than the context of {context}: "
            f"shorten prompts or replies (max_new), or give the {role} a larger context"
        )


def refuse_strangers(ids: Tensor, vocabulary: int) -> None:
    """Raises ValueError: a token outside of the vocabulary."""
    if int(ids.max()) >= vocabulary:
        raise ValueError(
            f"shape.vocabulary: token {int(ids.max())} in a vocabulary of {vocabulary}: "
            "the network was made for another tokenizer"
        )
