"""Checks that a model fits the data: the same tokenizer, and a context that is long enough."""

from __future__ import annotations

import lightning as L


def refuse_other_ids(name: str, model: object, digest: str) -> None:
    """Check that a model uses the same tokenizer as the data, if the model has a `tokenizer_digest`.

    Args: name: the setting that holds the model; digest: the digest of the data's tokenizer.
    Raises ValueError: the digests differ.
    """
    read = getattr(model, "tokenizer_digest", None)
    if read not in (None, digest):
        raise ValueError(
            f"{name}: the model was trained with a different tokenizer ({read[:12]}…) from the data's "
            f"({digest[:12]}…): use the model's tokenizer for the data, or another {name}"
        )


def context_of(model: object) -> int | None:
    """The longest row that a model can read and continue, in tokens; None if no limit is known."""
    return getattr(model, "context", None)


def row_limit(context: int | None, trainer: L.Trainer | None) -> int | None:
    """The largest number of tokens of a row: `context`, or less if the model reads less; None if both are unknown."""
    return min((limit for limit in (context, context_of_model(trainer)) if limit is not None), default=None)


def context_of_model(trainer: L.Trainer | None) -> int | None:
    """The longest row that the Trainer's model can read, in tokens; None if there is no Trainer or no limit."""
    return context_of(getattr(trainer, "lightning_module", None))


def refuse_short_context(name: str, model: object, tokens: int) -> None:
    """Check that a model can read rows of `tokens` tokens, if it has a `context`.

    Args: name: the setting that holds the model.
    Raises ValueError: the context is too short.
    """
    context = context_of(model)
    if context is not None and tokens > context:
        raise ValueError(
            f"data.{name}: the model can read {context} tokens, and a row has up to {tokens} (prompt and max_new): "
            f"shorten the prompts or max_new, or use another {name} with a larger context"
        )
