"""Rejection sampling, control codes by score quantile, and a split into training and held-out prompts."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from data_modules.judgements.files import enumerated
from data_modules.judgements.schema import Judgement
from data_modules.judgements.splitting import prompt_digest
from lightning_nlf.numbers import Number, PositiveShare


@dataclass(frozen=True)
class Keep:
    """Rejection sampling from existing replies: only the best replies are imitated.

    Args:
        above: lowest score of a reply that is kept.
        share: share of the training replies that is kept, best replies first. Replies that tie with the worst kept
            reply are kept too.
        per_prompt: apply the share to each prompt's replies separately; for example .25 is best-of-4.

    Raises:
        ValueError: neither `above` nor `share` is given, or the share is not in (0, 1].
    """

    above: Number | None = None
    share: PositiveShare | None = None
    per_prompt: bool = False

    def __post_init__(self) -> None:
        if self.above is None and self.share is None:
            raise ValueError("keep: needs `above` (the lowest score to keep), `share`, or both")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"keep.share: got {self.share}, must be in (0, 1]")
        if self.per_prompt and self.share is None:
            raise ValueError("keep.per_prompt: needs a `share`; add one, or remove per_prompt")

    def threshold(self, scores: Sequence[float], prompt_scores: Sequence[float]) -> float:
        """The lowest score that is kept.

        Args: scores: scores of all training replies in ascending order; prompt_scores: scores of one prompt's replies.
        """
        among = sorted(prompt_scores) if self.per_prompt else scores
        best = among[-math.ceil(self.share * len(among) - 1e-9)] if self.share is not None and among else -math.inf
        return best if self.above is None else max(best, self.above)


def code_of(score: float, scores: Sequence[float], codes: Sequence[str]) -> str:
    """The control code of a score, by the score's quantile among the training scores. Each code has an equal share.

    Equal scores have the same code, because a score takes the middle quantile of its ties. With two codes and binary
    scores, all zeros therefore get the first code and all ones the second, however many there are of each.

    Args: scores: scores of the training replies in ascending order; codes: the code of the worst replies first.
    """
    quantile = (bisect_left(scores, score) + bisect_right(scores, score)) / (2 * len(scores))
    return codes[min(int(quantile * len(codes)), len(codes) - 1)]


def split(judgements: Sequence[Judgement], share: float) -> tuple[list[Judgement], list[Judgement]]:
    """Split judgements into training and held-out ones, by prompt.

    The choice depends only on the prompts, so it is the same for every seed and every order of the lines.

    Raises:
        ValueError: there is only one prompt.
    """
    prompts = sorted({judgement.prompt for judgement in judgements}, key=prompt_digest)
    if share and len(prompts) < 2:
        raise ValueError(f"val_share: got {share}, but there is only one prompt; set val_share to 0, or add prompts")
    count = min(max(round(share * len(prompts)), 1), len(prompts) - 1) if share else 0
    held_out_prompts = set(prompts[:count])
    apart = [judgement for judgement in judgements if judgement.prompt in held_out_prompts]
    return [judgement for judgement in judgements if judgement.prompt not in held_out_prompts], apart


def refuse_overlap(training: Sequence[Judgement], held_out: Sequence[Judgement], name: str) -> None:
    """Raises ValueError: a held-out prompt is also a training prompt.  name: the argument to name in the message."""
    first: dict[object, str] = {}
    for judgement in training:
        first.setdefault(judgement.prompt, judgement.where)
    overlap = [f"{j.where}: prompt: also in {first[j.prompt]}" for j in held_out if j.prompt in first]
    if overlap:
        raise ValueError(
            f"{name}: held-out prompts are also training prompts; remove them from one of the files. "
            f"{enumerated(overlap)}"
        )
