"""From the lines of files to groups of rows, and what happens to lines that the tokenizer cannot read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from data_modules.feedback.files import enumerated
from data_modules.feedback.rows import Layout, Row
from data_modules.feedback.schema import Judgement
from lightning_nlf.batch import Batch


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


def knowing(layout: Layout, training: Sequence[Judgement], paths: Sequence[str]) -> Layout:
    """The layout with the scores of what is learned from. Raises ValueError: it goes by these, and there are none."""
    scores = [score for judgement in training for score in judgement.score or () if score is not None]
    for name, value in {"keep": layout.keep, "control_codes": layout.codes}.items():
        if value not in (None, ()) and not scores:
            raise ValueError(f"{name}: it goes by the score, and no reply in {', '.join(paths)} has one")
    return layout.knowing(scores)


def rows_of(
    layout: Layout, judgements: Sequence[Judgement], groups: Sequence[Sequence[Row]], paths: Sequence[str]
) -> Batch:
    """The rows of all. Raises ValueError: there is none, as nothing that is used is there."""
    found = [group for group in groups if group]
    if not found:
        there = Counter(name for judgement in judgements for name in judgement.record())
        raise ValueError(
            f"use: nothing of {', '.join(layout.use) or 'nothing'} is in {', '.join(paths)}, "
            f"whose fields are {', '.join(there)}"
        )
    return layout.batch(found)
