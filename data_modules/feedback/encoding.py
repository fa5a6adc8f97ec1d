"""From the lines of files to groups of rows: which cannot be read, how much is learned from, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from data_modules.feedback.rows import Layout, Row, Use
from data_modules.judgements.files import enumerated
from data_modules.judgements.schema import Judgement
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
    return replace(layout, scores=sorted(scores))


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


def calls(judgement: Judgement, use: Sequence[Use]) -> int:
    """How often the teacher was asked.

    A call is a score, a critique, an order (a preference is one), an expected response, or the steps of a response.
    """
    per_response = [name for name in ("score", "critique", "steps") if name in use]
    asked = sum(x is not None for name in per_response for x in getattr(judgement, name) or ())
    ordered = any(name in use and getattr(judgement, name) is not None for name in ("ranking", "preference"))
    return asked + ordered + ("expected" in use and judgement.expected is not None)


def tell(judgements: Sequence[Judgement], rows: Batch, use: Sequence[Use], held: int) -> None:
    """Says how much of the training judgements is learned from, and warns of rankings that hold nothing but ties.

    Args: rows: of the judgements, with `expert_mask`; held: how many other judgements are held out.
    """
    assert rows.expert_mask is not None
    learned, imitated = int(rows.mask.any(1).sum()), int(rows.expert_mask.any(1).sum())
    critiques = int(rows.extra["critique"].sum()) if "critique" in rows.extra else 0
    responses = sum(len(judgement.responses) for judgement in judgements)
    expected = sum(judgement.expected is not None for judgement in judgements) * ("expected" in use)
    idle = responses + expected + critiques - len(rows)
    counts = {"responses judged": learned, "texts to imitate": imitated, "responses left out (see `data.use`)": idle}
    parts = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    rank_zero_info(f"feedback: {len(judgements)} lines to train on, {held} held out: {parts}")
    flat = [judgement for judgement in judgements if judgement.ranks and len(set(judgement.ranks)) == 1]
    if flat and "ranking" in use:
        rank_zero_warn(f"{len(flat)} rankings put no response above another: {flat[0].where} is the first")
