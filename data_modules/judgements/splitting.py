"""Split prompts by share into training and held-out prompts; the split depends only on the prompts."""

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
    """Choose a set of held-out prompts for each share, without overlap, at least one prompt for a share above 0.

    Raises:
        ValueError: there are too few different prompts, so that none would be left to train on.
    """
    order = sorted(set(prompts), key=prompt_digest)
    counts = [max(round(share * len(order)), 1) if share else 0 for share in shares]
    if order and sum(counts) >= len(order):
        raise ValueError(
            f"shares: {sum(counts)} of {len(order)} different prompts would be held out, and none left to train on; "
            "give more prompts, or lower the shares"
        )
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return [set(order[start : start + count]) for start, count in zip(starts, counts, strict=True)]
