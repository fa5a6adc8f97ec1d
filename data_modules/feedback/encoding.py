"""Encode judgements into rows: skip lines, set score thresholds, and count teacher calls and training rows."""

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
    """Encode judgements; return the judgements that can be encoded, and the rows of each.

    Args: on_bad: `skip` = leave out judgements that cannot be encoded, and list them in a warning.
    Raises:
        ValueError: a text cannot be encoded or is too long; the message lists the first ten with line, cause and
            remedy. With `skip`, only if no judgement is left.
    """
    encodable: list[Judgement] = []
    groups: list[list[Row]] = []
    faults: list[str] = []
    for judgement in judgements:
        try:
            groups.append(layout.rows(judgement))
            encodable.append(judgement)
        except ValueError as error:
            faults.append(str(error))
    if faults and (on_bad == "raise" or not encodable):
        raise ValueError(enumerated(faults))
    if faults:
        rank_zero_warn(f"skipped: {enumerated(faults)}")
    return encodable, groups


def with_scores(layout: Layout, training: Sequence[Judgement], paths: Sequence[str]) -> Layout:
    """Add the sorted scores of the training lines to a layout.  Raises ValueError: scores are needed but missing."""
    scores = [score for judgement in training for score in judgement.score or () if score is not None]
    for name, value in {"keep": layout.keep, "control_codes": layout.codes}.items():
        if value not in (None, ()) and not scores:
            raise ValueError(f"{name}: it needs scores, and no reply in {', '.join(paths)} has one")
    return replace(layout, scores=sorted(scores))


def rows_of(
    layout: Layout, judgements: Sequence[Judgement], groups: Sequence[Sequence[Row]], paths: Sequence[str]
) -> Batch:
    """Make a batch of all rows.  Raises ValueError: no judgement has a field that is used."""
    nonempty = [group for group in groups if group]
    if not nonempty:
        fields = Counter(name for judgement in judgements for name in judgement.record())
        raise ValueError(
            f"use: got [{', '.join(layout.use)}], but {', '.join(paths)} has only the fields {', '.join(fields)}; "
            "use one of these"
        )
    return layout.batch(nonempty)


def calls(judgement: Judgement, use: Sequence[Use]) -> int:
    """Number of teacher calls that a judgement cost.

    One call gives a score, a critique, a ranking or preference, an expected response, or the steps of one response.
    """
    per_response = [name for name in ("score", "critique", "steps") if name in use]
    answers = sum(x is not None for name in per_response for x in getattr(judgement, name) or ())
    ordered = any(name in use and getattr(judgement, name) is not None for name in ("ranking", "preference"))
    return answers + ordered + ("expected" in use and judgement.expected is not None)


def report_counts(judgements: Sequence[Judgement], rows: Batch, use: Sequence[Use], held_out: int) -> None:
    """Log how many training rows are used and for what, and warn of rankings that have only ties.

    Args: rows: the rows of the judgements, which have an `expert_mask`; held_out: number of held-out judgements.
    """
    assert rows.expert_mask is not None
    learner_rows, imitated = int(rows.mask.any(1).sum()), int(rows.expert_mask.any(1).sum())
    critiques = int(rows.extra["critique"].sum()) if "critique" in rows.extra else 0
    responses = sum(len(judgement.responses) for judgement in judgements)
    expected = sum(judgement.expected is not None for judgement in judgements) * ("expected" in use)
    idle = responses + expected + critiques - len(rows)
    counts = {
        "responses judged": learner_rows,
        "texts to imitate": imitated,
        "responses left out (see `data.use`)": idle,
    }
    parts = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    rank_zero_info(f"feedback: {len(judgements)} lines to train on, {held_out} held out: {parts}")
    flat = [judgement for judgement in judgements if judgement.ranks and len(set(judgement.ranks)) == 1]
    if flat and "ranking" in use:
        rank_zero_warn(f"{len(flat)} rankings have only ties; the first is {flat[0].where}")
