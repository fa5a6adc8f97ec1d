"""Refuse rows that are longer than the context, and token ids outside the vocabulary."""

from __future__ import annotations

from torch import Tensor


def refuse_length(tokens: int, context: int, role: str, reply: int = 0) -> None:
    """Check a row's length.

    Raises ValueError: `tokens` plus `reply` tokens to sample exceed the context of the network `role`.
    """
    if tokens + reply > context:
        read = f"{tokens} tokens and a reply of up to {reply + 1}" if reply else f"{tokens} tokens"
        raise ValueError(
            f"shape.context: a row of {read} is longer than the context of {context}; "
            f"shorten prompts or replies (max_new), or give the {role} a larger context"
        )


def refuse_strangers(ids: Tensor, vocabulary: int) -> None:
    """Check token ids. Raises ValueError: a token id is outside the vocabulary."""
    if int(ids.max()) >= vocabulary:
        raise ValueError(
            f"shape.vocabulary: token {int(ids.max())} is outside the vocabulary of {vocabulary}; "
            "use the tokenizer that the network was made for"
        )
