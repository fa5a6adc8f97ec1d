"""From the lines of files to groups of rows, and what happens to lines that the tokenizer cannot read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from data_modules.feedback.files import enumerated
from data_modules.feedback.rows import Layout, Row
from data_modules.feedback.schema import Judgement


def encoded(
    layout: Layout, judgements: Sequence[Judgement], on_bad: Literal["raise", "skip"]
) -> tuple[list[Judgement], list[list[Row]]]:
    """The judgements whose texts can be encoded, and the rows of each.

    Args: on_bad: `skip` goes on without the others, and warns which these are.
    Raises:
        ValueError: a text that cannot be encoded or is too long: line, cause and mend of the first ten; with `skip`
            only where nothing is left.
    """
    kept: list[Judgement] = []
    groups: list[list[Row]] = []
    faults: list[str] = []
    for judgement in judgements:
        try:
            groups.append(layout.rows(judgement))
            kept.append(judgement)
        except ValueError as error:
            faults.append(str(error))
    if faults and (on_bad == "raise" or not kept):
        raise ValueError(enumerated(faults))
    if faults:
        rank_zero_warn(f"skipped: {enumerated(faults)}")
    return kept, groups


def scores_of(judgements: Sequence[Judgement]) -> list[float]:
    """Of all their responses that have one."""
    return [score for judgement in judgements for score in judgement.score or () if score is not None]
