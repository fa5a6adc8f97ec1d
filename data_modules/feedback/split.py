"""Which judgements are held out: by prompt, so that nothing of a held-out prompt is learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from json import dumps

from data_modules.feedback.files import enumerated
from data_modules.feedback.schema import Judgement


def split(judgements: Sequence[Judgement], share: float) -> tuple[list[Judgement], list[Judgement]]:
    """Those to learn from, and those of a share of the prompts, which are held out.

    Which prompts these are depends on the prompts alone: every seed and every order of the lines holds out the same.

    Raises:
        ValueError: fewer prompts than that one could be on each side.
    """
    prompts = sorted({judgement.prompt for judgement in judgements}, key=_chance)
    if share and len(prompts) < 2:
        raise ValueError(f"val_share: got {share}, and there is one prompt alone, which cannot be on both sides")
    count = min(max(round(share * len(prompts)), 1), len(prompts) - 1) if share else 0
    held = set(prompts[:count])
    apart = [judgement for judgement in judgements if judgement.prompt in held]
    return [judgement for judgement in judgements if judgement.prompt not in held], apart


def refuse_overlap(training: Sequence[Judgement], held: Sequence[Judgement], name: str) -> None:
    """Raises ValueError: a held-out prompt that is learned from as well; `name` is the knob it came in by."""
    first: dict[object, str] = {}
    for judgement in training:
        first.setdefault(judgement.prompt, judgement.where)
    both = [f"{j.where}: prompt: is that of {first[j.prompt]} as well" for j in held if j.prompt in first]
    if both:
        raise ValueError(
            f"{name}: a held-out prompt is learned from; take it out of one of the files. {enumerated(both)}"
        )


def _chance(prompt: object) -> bytes:
    text = prompt if isinstance(prompt, str) else dumps([asdict(message) for message in prompt])  # type: ignore
    return hashlib.sha256(text.encode()).digest()
