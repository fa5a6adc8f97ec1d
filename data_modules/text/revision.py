"""What the teacher says of replies, and how they are revised after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from data_modules.text.conversation import Conversation
from data_modules.text.environment import Revisable, TextEnvironment
from data_modules.text.episode import Episode, Prompt
from lightning_nlf.batch import Replier

Words = Literal["task", "shuffled", "placebo"]
Keep = Literal["all", "best", "better", "approved"]


class RevisableTask(TextEnvironment, Revisable, Protocol):
    """Both."""


@dataclass(frozen=True)
class Placed:
    """A `Replier` on a device of its choice: prompts come from texts, and an expert replies where they are."""

    replier: Replier
    device: torch.device

    def reply(self, ids: Tensor, lengths: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """`Replier.reply`."""
        return self.replier.reply(ids.to(self.device), lengths.to(self.device), state, **how)


@dataclass(frozen=True)
class Review:
    """A reply, and what the teacher says of it."""

    episode: Episode
    of: int  # place of the first attempt that it goes back to
    round: int = 0  # how often it was revised before
    critique: str | None = None  # None where nothing was wrong
    ids: list[int] | None = None  # what it is revised behind; None without a critique, and where that cannot be read

    @property
    def reply(self) -> str:
        return self.episode.turns[0].text


@dataclass(frozen=True)
class Revision:
    """What became of a criticised reply."""

    review: Review
    episode: Episode  # whose prompt is the case's own; its tokens and log-probabilities are the reviser's

    @property
    def gain(self) -> float:
        """By the task's rule."""
        return self.episode.score - self.review.episode.score


@dataclass(frozen=True)
class Teacher:
    """How a task's replies are criticised, and the prompts that this leads to.

    Args:
        words: the critique of the task; that of another reply, `shuffled`; or one that fits any, `placebo`. The last
            two are controls: what is gained by them was not in the words.
        context: tokens that a model can read.
    """

    conversation: Conversation
    context: int | None = None
    words: Words = "task"

    @property
    def task(self) -> RevisableTask:
        return cast(RevisableTask, self.conversation.task)

    def reviews(
        self, episodes: Sequence[Episode], of: Sequence[int], rng: np.random.Generator, round: int = 0
    ) -> list[Review]:
        """Of each reply, in their order."""
        seeds = rng.integers(2**32, size=len(episodes)).tolist()
        said = [
            self.task.critique(episode.prompt.case, episode.turns[0].text, seed)
            for episode, seed in zip(episodes, seeds, strict=True)
        ]
        wrong = [place for place, critique in enumerate(said) if critique is not None]
        if self.words == "shuffled":
            others = _of_another_prompt({place: episodes[place].prompt.case.id for place in wrong}, rng)
            said = [None if critique is None else said[others[place]] for place, critique in enumerate(said)]
        elif self.words == "placebo":
            said = [None if critique is None else self.task.placebo for critique in said]
        reviews = [Review(episode, place, round) for episode, place in zip(episodes, of, strict=True)]
        return [self._criticised(*each) for each in zip(reviews, said, strict=True)]

    def _criticised(self, review: Review, critique: str | None) -> Review:
        if critique is None:
            return review
        ids = self.encoded(self.task.revision_prompt(review.episode.prompt.case, review.reply, critique))
        fits = ids is not None and self.fits(len(ids) + self.conversation.max_new)
        return replace(review, critique=critique, ids=ids if fits else None)

    def fits(self, tokens: int) -> bool:
        """Whether a row of so many can be read."""
        return self.context is None or tokens <= self.context

    def encoded(self, text: str) -> list[int] | None:
        """The ids of a prompt that quotes a reply; None where that spells a special token, which no text may."""
        try:
            return self.conversation.tokenizer.encode_prompt(text)
        except ValueError:
            return None

    def revisions(
        self,
        reviser: Replier,
        reviews: Sequence[Review],
        rng: np.random.Generator,
        copies: int = 1,
        deterministic: bool = False,
    ) -> list[Revision]:
        """`copies` of each reply that has a critique, next to each other."""
        asked = [review for review in reviews if review.ids is not None]
        if not asked:
            return []
        prompts = [Prompt(review.episode.prompt.case, cast(list[int], review.ids)) for review in asked]
        seeds = rng.integers(2**62, size=(len(prompts) * copies, 1))
        played = self.conversation.play(reviser, prompts, seeds, copies, deterministic)
        of = [review for review in asked for _ in range(copies)]
        return [
            Revision(review, replace(episode, prompt=review.episode.prompt))
            for review, episode in zip(of, played, strict=True)
        ]

    def outcome(
        self, reviser: Replier, episodes: Sequence[Episode], rng: np.random.Generator, deterministic: bool
    ) -> list[float]:
        """What each episode earns after one revision; what needs none, or has no room for it, as it is."""
        reviews = self.reviews(episodes, range(len(episodes)), rng)
        earned = [episode.score for episode in episodes]
        for revision in self.revisions(reviser, reviews, rng, deterministic=deterministic):
            earned[revision.review.of] = revision.episode.score
        return earned


def keep_revisions(made: list[Revision], reviews: Sequence[Review], keep: Keep) -> list[Revision]:
    """The revisions that make rows.

    Args:
        reviews: what the teacher says of revisions.
        keep: the `best` of each reply's by score; those `better` than their reply; those that are `approved`, of which
            the teacher has nothing to say; or all.
    """
    if keep == "approved":
        approved = {id(review.episode) for review in reviews if review.critique is None}
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


def _of_another_prompt(prompts: Mapping[int, str], rng: np.random.Generator) -> dict[int, int]:
    """For each place one of another prompt, each once, unless more than half of the places are of one prompt.

    In an order where those of a prompt lie together, as many places on as the largest prompt has.
    """
    lots = dict(zip(dict.fromkeys(prompts.values()), rng.permutation(len(set(prompts.values()))), strict=True))
    order = sorted(rng.permutation(list(prompts)).tolist(), key=lambda place: lots[prompts[place]])
    step = max(Counter(prompts.values()).values(), default=0)
    return dict(zip(order, order[step:] + order[:step], strict=True))
