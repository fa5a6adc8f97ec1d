"""Refusals of models that do not fit the data."""

from __future__ import annotations

import lightning as L


def refuse_other_ids(name: str, model: object, digest: str) -> None:
    """Raises ValueError: the model says that it reads the ids of another tokenizer than the prompts are in.

    Args: name: of the knob that brought the model; digest: of the data's tokenizer.
    """
    read = getattr(model, "tokenizer_digest", None)
    if read not in (None, digest):
        raise ValueError(
            f"{name}: it reads the ids of another tokenizer ({read[:12]}…) than the prompts are in "
            f"({digest[:12]}…): use the tokenizer that it was trained with, or another {name}"
        )


def context_of(model: object) -> int | None:
    """Tokens of a row that a model can read and end; None where it does not say, or has no limit."""
    return getattr(model, "context", None)


def context_of_model(trainer: L.Trainer | None) -> int | None:
    """Tokens of a row that the model of a Trainer can read; None without a Trainer or a limit."""
    return None if trainer is None else context_of(trainer.lightning_module)


def refuse_short_context(name: str, model: object, tokens: int) -> None:
    """Raises ValueError: the model says that it cannot read rows of so many tokens.

    Args: name: of the knob that brought the model.
    """
    context = context_of(model)
    if context is not None and tokens > context:
        raise ValueError(
            f"data.{name}: it can read {context} tokens, and a row has up to {tokens}, prompt and reply (max_new) "
            f"together: shorten prompts or max_new, or use another {name} with a larger context"
        )
