"""Held-out prompts by share: which they are depends on the prompts alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from data_modules.judgements.schema import PromptText, plain


def prompt_digest(prompt: PromptText) -> str:
    """SHA-256 of a prompt, in hexadecimal."""
    text = prompt if isinstance(prompt, str) else json.dumps(plain(prompt))
    return hashlib.sha256(text.encode()).hexdigest()


def split_prompts(prompts: Sequence[PromptText], shares: Sequence[float]) -> list[set[PromptText]]:
    """A set of held-out prompts for each share, at least one where the share is not 0. No two have one in common.

    Raises:
        ValueError: too few different prompts to leave one to train on.
    """
    order = sorted(set(prompts), key=prompt_digest)
    counts = [max(round(share * len(order)), 1) if share else 0 for share in shares]
    if order and sum(counts) >= len(order):
        raise ValueError(f"shares: {len(order)} different prompts, and {sum(counts)} of them would be held out")
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return [set(order[start : start + count]) for start, count in zip(starts, counts, strict=True)]
