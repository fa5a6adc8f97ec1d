"""What a file of feedback cost, and what is told of it before training begins."""

from __future__ import annotations

from collections.abc import Sequence

from data_modules.feedback.rows import Use
from data_modules.feedback.schema import Judgement
from lightning_nlf.batch import Batch


def calls(judgement: Judgement, use: Sequence[Use]) -> int:
    """How often the teacher was asked.

    A call is a score, a critique, an order (a preference is one), an expected response, or the steps of a response.
    """
    each = ("score", "critique", "steps")
    asked = sum(own is not None for name in each if name in use for own in getattr(judgement, name) or ())
    ordered = any(name in use and getattr(judgement, name) is not None for name in ("ranking", "preference"))
    return asked + ordered + ("expected" in use and judgement.expected is not None)


def told(judgements: Sequence[Judgement], rows: Batch, use: Sequence[Use]) -> str:
    """How much of the training judgements is learned from.

    Args: rows: of the judgements, with `expert_mask`.
    """
    assert rows.expert_mask is not None
    learned, imitated = int(rows.mask.any(1).sum()), int(rows.expert_mask.any(1).sum())
    critiques = int(rows.extra["critique"].sum()) if "critique" in rows.extra else 0
    responses = sum(len(judgement.responses) for judgement in judgements)
    expected = sum(judgement.expected is not None for judgement in judgements) * ("expected" in use)
    idle = responses + expected + critiques - len(rows)
    return (
        f"feedback: {len(judgements)} judgements, {learned} rows to learn from and {imitated} to imitate; "
        f"nothing that is used here is known of {idle} of the {responses} responses"
    )


def flat(judgements: Sequence[Judgement]) -> str | None:
    """A warning of rankings that nothing can be learned from but ties."""
    found = [judgement for judgement in judgements if judgement.ranks and len(set(judgement.ranks)) == 1]
    return f"{len(found)} rankings put no response above another: {found[0].where} is the first" if found else None
