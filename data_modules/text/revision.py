"""What the teacher says of replies, what they become after it, and which of that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from data_modules.text.episode import Episode

Keep = Literal["all", "best", "better", "approved"]


@dataclass(frozen=True)
class Review:
    """A reply, and what the teacher says of it."""

    episode: Episode
    of: int  # place of the first attempt that it goes back to
    round: int = 0  # how often it was revised before
    critique: str | None = None  # None where nothing was wrong
    heard: bool = True  # whether anybody said something; else `critique` is None and means nothing
    ids: list[int] | None = None  # what it is revised behind; None without a critique, and where that cannot be read

    @property
    def reply(self) -> str:
        return self.episode.turns[0].text

    @property
    def approved(self) -> bool:
        """Nothing is wrong, as far as the teacher says."""
        return self.heard and self.critique is None


@dataclass(frozen=True)
class Revision:
    """What became of a criticised reply."""

    review: Review
    episode: Episode  # whose prompt is the case's own; its tokens and log-probabilities are the reviser's

    @property
    def gain(self) -> float:
        """What it earned more; NaN where nobody pays."""
        return self.episode.score - self.review.episode.score


def keep_revisions(made: list[Revision], reviews: Sequence[Review], keep: Keep) -> list[Revision]:
    """The revisions that make rows.

    Args:
        reviews: what the teacher says of revisions.
        keep: the `best` of each reply's by score; those `better` than their reply; those that are `approved`, of which
            the teacher has nothing to say; or all.
    """
    if keep == "approved":
        approved = {id(review.episode) for review in reviews if review.approved}
        return [revision for revision in made if id(revision.episode) in approved]
    if keep == "better":
        return [revision for revision in made if revision.gain > 0]
    if keep == "best":
        best: dict[int, Revision] = {}
        for revision in made:
            of = revision.review.of
            if of not in best or revision.episode.score > best[of].episode.score:
                best[of] = revision
        return list(best.values())
    return made


def criticism(reviews: Sequence[Review], revisions: Sequence[Revision], most: int = 50) -> list[dict[str, str]]:
    """Prompt, reply, critique and, where there are any, the first revision of some replies, for people to read.

    Args: reviews: of the first attempts; most: rows of the table.
    """
    made: dict[int, str] = {}
    for revision in revisions:
        if revision.review.round == 0:
            made.setdefault(revision.review.of, revision.episode.turns[0].text)
    return [
        {
            "prompt": review.episode.prompt.case.text.strip(),
            "reply": review.reply,
            "critique": review.critique or "(nothing is wrong)" if review.heard else "(no answer)",
        }
        | ({"revision": made.get(review.of, "")} if made else {})
        for review in reviews[:most]
    ]
