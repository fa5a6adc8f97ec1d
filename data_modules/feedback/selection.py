"""Which replies are imitated and behind which code, by their scores; and which prompts are held out."""

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
    """Rejection sampling from replies that are there: the good ones are imitated, the others are not.

    Args:
        above: those that score at least so much.
        share: the best share of the training replies, and whatever ties with the last of them.
        per_prompt: that share of each prompt's own replies instead: .25 is best-of-4.

    Raises:
        ValueError: neither is given, or a share that is none.
    """

    above: Number | None = None
    share: PositiveShare | None = None
    per_prompt: bool = False

    def __post_init__(self) -> None:
        if self.above is None and self.share is None:
            raise ValueError("keep: name the replies to keep by `above`, a score, or by `share`, or both")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"keep.share: got {self.share}, must be in (0, 1]")
        if self.per_prompt and self.share is None:
            raise ValueError("keep.per_prompt: it is about a `share`, and there is none")

    def threshold(self, scores: Sequence[float], own: Sequence[float]) -> float:
        """The lowest score that is kept.

        Args: scores: of the training replies, in ascending order; own: of the prompt's.
        """
        among = sorted(own) if self.per_prompt else scores
        best = among[-math.ceil(self.share * len(among) - 1e-9)] if self.share is not None and among else -math.inf
        return best if self.above is None else max(best, self.above)


def code_of(score: float, scores: Sequence[float], codes: Sequence[str]) -> str:
    """The code of a score, the worst first: as many equal parts of the training scores as there are codes.

    Equal scores have one code: a score counts as the middle of those it equals, so that of two codes the ones and the
    zeros of a binary score have one each, however many there are of either.

    Args: scores: of the training replies, in ascending order.
    """
    quantile = (bisect_left(scores, score) + bisect_right(scores, score)) / (2 * len(scores))
    return codes[min(int(quantile * len(codes)), len(codes) - 1)]


def split(judgements: Sequence[Judgement], share: float) -> tuple[list[Judgement], list[Judgement]]:
    """Those to learn from, and those of a share of the prompts, which are held out.

    Which prompts these are depends on the prompts alone: every seed and every order of the lines holds out the same.

    Raises:
        ValueError: fewer prompts than that one could be on each side.
    """
    prompts = sorted({judgement.prompt for judgement in judgements}, key=prompt_digest)
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
