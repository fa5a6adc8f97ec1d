"""Critiques of replies, revisions of replies, and the choice of revisions to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from data_modules.text.episode import Episode

Keep = Literal["all", "best", "better", "approved"]


@dataclass(frozen=True)
class Review:
    """A reply and the teacher's critique of it."""

    episode: Episode
    of: int  # index of the first attempt that the reply stems from
    round: int = 0  # number of revisions before this reply
    critique: str | None = None  # None if nothing is wrong
    has_answer: bool = True  # False: the critic gave no answer, so a `critique` of None means nothing
    ids: list[int] | None = None  # the prompt for a revision; None if there is no critique or it cannot be encoded

    @property
    def reply(self) -> str:
        return self.episode.turns[0].text

    @property
    def approved(self) -> bool:
        """Whether the teacher found nothing wrong with the reply."""
        return self.has_answer and self.critique is None


@dataclass(frozen=True)
class Revision:
    """A revision of a criticised reply, as an episode."""

    review: Review
    episode: Episode  # the original prompt, with the reviser's tokens and log-probabilities

    @property
    def gain(self) -> float:
        """Score of the revision minus score of the reply; NaN if nothing scores replies."""
        return self.episode.score - self.review.episode.score


def keep_revisions(revisions: list[Revision], reviews: Sequence[Review], keep: Keep) -> list[Revision]:
    """Choose the revisions to learn from.

    Args:
        reviews: the teacher's critiques of revisions.
        keep: `best`: for each attempt the revision with the highest score; `better`: the revisions with a higher score
            than the reply that they revise; `approved`: the revisions in which the teacher finds nothing wrong; `all`:
            every revision.
    """
    if keep == "approved":
        approved = {id(review.episode) for review in reviews if review.approved}
        return [revision for revision in revisions if id(revision.episode) in approved]
    if keep == "better":
        return [revision for revision in revisions if revision.gain > 0]
    if keep == "best":
        best: dict[int, Revision] = {}
        for revision in revisions:
            of = revision.review.of
            if of not in best or revision.episode.score > best[of].episode.score:
                best[of] = revision
        return list(best.values())
    return revisions


def criticism(reviews: Sequence[Review], revisions: Sequence[Revision], rows: int = 50) -> list[dict[str, str]]:
    """A table for people with prompt, reply, critique, and the first revision if there is one.

    Args: reviews: the reviews of the first attempts; rows: maximum number of rows.
    """
    first: dict[int, str] = {}
    for revision in revisions:
        if revision.review.round == 0:
            first.setdefault(revision.review.of, revision.episode.turns[0].text)
    return [
        {
            "prompt": review.episode.prompt.case.text.strip(),
            "reply": review.reply,
            "critique": review.critique or "(nothing is wrong)" if review.has_answer else "(no answer)",
        }
        | ({"revision": first.get(review.of, "")} if first else {})
        for review in reviews[:rows]
    ]
