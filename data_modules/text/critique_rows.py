"""The rows that a round of critiques and revisions gives: the same replies behind other prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from data_modules.judgements.schema import PromptText
from data_modules.text.environment import Case
from data_modules.text.episode import Episode, said
from data_modules.text.prompts import with_last
from data_modules.text.revision import Review, Revision
from data_modules.text.rows import EXPERT, LEARNER, Segment, as_batch
from data_modules.text.teacher import Teacher
from lightning_nlf.batch import Batch

Learn = Literal["attempts", "revisions", "pairs", "critiques", "conditioned", "hindsight", "anchors"]


@dataclass(frozen=True)
class Row:
    """A row, and what is known of it beside its tokens."""

    dialogue: Sequence[Segment]
    of: int  # place of the first attempt that it goes back to
    kind: Learn | None  # None where nobody learns from it
    score: float = float("nan")
    rank: int = -1
    seen: Sequence[Segment] | None = None  # the same actions behind the prompt with the critique

    @property
    def tokens(self) -> int:
        return sum(len(segment.ids) for segment in self.dialogue)


@dataclass(frozen=True)
class CritiqueRows:
    """What is learned from a round.

    Args:
        learn: which rows there are.
            `attempts`: the learner's own replies, with what they earned. `revisions`: as an expert's reply to the
            prompt alone. `pairs`: criticised replies and their revisions, ranked, both as the learner's; of several
            rounds the last revisions are best, and the first attempts worst.
            `critiques`: as an expert's reply to prompt and attempt. `conditioned`: the attempt as an expert's reply to
            prompt and critique. `hindsight`: a criticised reply and its revision, announced as bad and good, in either
            order, in one row. `anchors`: what the reviser replies to prompts that the critiques are not about. Of what
            was right `critiques` and `conditioned` have the task's praise.
        scored: rewards and scores are known; without, there are none that anybody could learn from.
    """

    teacher: Teacher
    learn: tuple[Learn, ...]
    scored: bool = True

    def rows(
        self, reviews: Sequence[Review], revisions: Sequence[Revision], anchors: Sequence[tuple[int, Episode]] = ()
    ) -> tuple[list[Row], int]:
        """All that fit the context, and how many do not.

        Args: reviews: of the first attempts; revisions: kept ones; anchors: by the place of the attempt that they stand
            in for.
        """
        found = self._of_reviews(reviews) + self._of_revisions(revisions)
        if "pairs" in self.learn:
            found += ranked_pairs(revisions)
        found += [Row(_dialogue(played, EXPERT), of, "anchors") for of, played in anchors]
        rows = [row for row in found if self.teacher.fits(row.tokens)]
        return rows, len(found) - len(rows)

    def batch(self, rows: Sequence[Row], attempts: Sequence[Episode], replies: int) -> Batch:
        """The rows, those of one prompt as a group; of pairs those of one attempt, which its own revisions are ranked
        against, unless attempts or revisions are learned from as well.

        Args: attempts: all of them, `replies` to a prompt, next to each other.
        Returns: `extra` says which rows are an `attempt` and which a `revision`; `view` holds these behind the prompt
            with their critique, and has no valid step where there is none. A prompt that gave no row has one in which
            nobody decided anything, so that groups, minibatches and ranks remain even.
        """
        if "pairs" in self.learn and not {"attempts", "revisions"} & set(self.learn):
            replies = 1
        idle = set(range(0, len(attempts), replies)) - {row.of // replies * replies for row in rows}
        rows = sorted([*rows, *(Row(_dialogue(attempts[of]), of, None) for of in idle)], key=lambda row: row.of)
        batch = as_batch([row.dialogue for row in rows])
        assert batch.expert_mask is not None
        stays = torch.tensor([row.kind is not None for row in rows])[:, None]
        rewards = torch.zeros(batch.mask.shape) if batch.rewards is None else torch.where(stays, batch.rewards, 0)
        batch = replace(
            batch,
            valid=batch.valid & stays,
            mask=batch.mask & stays,
            expert_mask=batch.expert_mask & stays,
            group=torch.tensor([row.of // replies for row in rows]),
            rank=torch.tensor([row.rank for row in rows]),
            score=torch.tensor([row.score if self.scored else float("nan") for row in rows]),
            rewards=rewards if self.scored else None,
            extra={
                "attempt": torch.tensor([row.kind == "attempts" for row in rows]),
                "revision": torch.tensor([row.kind == "revisions" for row in rows]),
            },
        )
        return replace(batch, view=_seen(rows)) if {"attempts", "revisions"} & set(self.learn) else batch

    def _of_reviews(self, reviews: Sequence[Review]) -> list[Row]:
        task = self.teacher.sentences
        rows: list[Row] = []
        for review in reviews:
            case, turn = review.episode.prompt.case, review.episode.turns[0]
            words = review.critique or task.praise
            if "attempts" in self.learn:
                seen = None if review.ids is None else [Segment(review.ids), Segment(turn.tokens, LEARNER)]
                rows.append(Row(_dialogue(review.episode), review.of, "attempts", review.episode.score, seen=seen))
            if "critiques" in self.learn and review.heard:
                ids = self.teacher.encoded(task.critique_prompt(case, review.reply))
                reply = self._reply(words)
                if ids is not None and reply is not None:
                    rows.append(Row([Segment(ids), Segment(reply, EXPERT)], review.of, "critiques"))
            if "conditioned" in self.learn and review.heard:
                ids = self.teacher.encoded(task.conditioned_prompt(case, words))
                if ids is not None:
                    rows.append(Row([Segment(ids), Segment(turn.tokens, EXPERT)], review.of, "conditioned"))
        return rows

    def _reply(self, words: str) -> list[int] | None:
        """The ids of a critique as a reply; None where it spells a special token, or a word that is not there."""
        tokenizer = self.teacher.conversation.tokenizer
        try:
            return [*tokenizer.encode_reply(words), tokenizer.eos]
        except ValueError:
            return None

    def _of_revisions(self, revisions: Sequence[Revision]) -> list[Row]:
        rows: list[Row] = []
        for place, revision in enumerate(revisions):
            review, turn = revision.review, revision.episode.turns[0]
            if "revisions" in self.learn:
                assert review.ids is not None
                reply = _dialogue(revision.episode, EXPERT)
                seen = [Segment(review.ids), Segment(turn.tokens, EXPERT)]
                rows.append(Row(reply, review.of, "revisions", revision.episode.score, seen=seen))
            if "hindsight" in self.learn:
                rows.append(self._hindsight(revision, good_first=place % 2 == 0))
        return rows

    def _hindsight(self, revision: Revision, good_first: bool) -> Row:
        review = revision.review
        turns = {True: revision.episode.turns[0], False: review.episode.turns[0]}
        first, second = turns[good_first], turns[not good_first]
        prompt = self._announced(review.episode.prompt.case, good_first)
        end = first.tokens[-1] if first.finished else None
        dialogue = [
            Segment(self.teacher.format.ids(prompt)),
            Segment(first.tokens, EXPERT),
            Segment(self._between(prompt, not good_first, end)),
            Segment(second.tokens, EXPERT),
        ]
        return Row(dialogue, review.of, "hindsight")

    def _announced(self, case: Case, good: bool) -> PromptText:
        """The prompt with what is said before a good or a bad reply."""
        return with_last(case.prompt, lambda text: text + self.teacher.sentences.announced(good))

    def _between(self, prompt: PromptText, good: bool, end: int | None) -> list[int]:
        """What announces the second reply: of a chat a turn of the user.  end: the token that ended the first, if any.

        Raises:
            ValueError: the chat template takes no further turn.
        """
        form, text = self.teacher.format, self.teacher.sentences.announced(good)
        posed = form.posed(prompt)
        return form.tokenizer.encode(text) if isinstance(posed, str) else form.turn(text.strip(), posed, end)

    def check(self, case: Case) -> None:
        """Raises ValueError, before training: the chat template does not take the turn that `hindsight` needs."""
        if "hindsight" not in self.learn:
            return
        try:
            self._between(self._announced(case, True), False, self.teacher.format.tokenizer.eos)
        except ValueError as error:
            raise ValueError(f"learn: hindsight has two replies in a row: {error}; learn something else") from None


def ranked_pairs(revisions: Sequence[Revision]) -> list[Row]:
    """Each criticised reply once, however many revisions it has, and what was not revised again above it.

    A reply of a later round ranks above those of the rounds before, and a last revision above all.
    """
    criticised = {id(revision.review.episode): revision.review for revision in revisions}
    rounds = max((review.round for review in criticised.values()), default=0)
    rows = [_of_learner(review.episode, review.of, rank=1 + rounds - review.round) for review in criticised.values()]
    last = [revision for revision in revisions if id(revision.episode) not in criticised]
    return rows + [_of_learner(revision.episode, revision.review.of, rank=0) for revision in last]


def _of_learner(episode: Episode, of: int, rank: int) -> Row:
    return Row(_dialogue(episode), of, "pairs", episode.score, rank)


def _dialogue(episode: Episode, by: int = LEARNER) -> list[Segment]:
    return [Segment(episode.prompt.ids), replace(said(episode.turns[0]), by=by)]


def _seen(rows: Sequence[Row]) -> Batch:
    """The same actions behind the prompts with critiques; no valid step in the rows that have none."""
    dialogues = [row.dialogue if row.seen is None else row.seen for row in rows]
    view = as_batch([[Segment(part.ids, part.by) for part in dialogue] for dialogue in dialogues])
    there = torch.tensor([row.seen is not None for row in rows])[:, None]
    assert view.expert_mask is not None
    return replace(view, valid=view.valid & there, mask=view.mask & there, expert_mask=view.expert_mask & there)
