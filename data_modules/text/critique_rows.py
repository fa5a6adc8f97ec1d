"""Training rows from a round of critiques and revisions: each reply or revision with the prompt that suits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from data_modules.judgements.schema import PromptText
from data_modules.text.environment import Case
from data_modules.text.episode import Episode, reply_segment
from data_modules.text.prompts import with_last
from data_modules.text.revision import Review, Revision
from data_modules.text.rows import EXPERT, LEARNER, Segment, as_batch
from data_modules.text.teacher import Teacher
from lightning_nlf.batch import Batch

Learn = Literal["attempts", "revisions", "pairs", "critiques", "conditioned", "hindsight", "anchors"]


@dataclass(frozen=True)
class Row:
    """The segments of a training row, and facts about the row that are not in its tokens."""

    dialogue: Sequence[Segment]
    of: int  # index of the first attempt that the row stems from
    kind: Learn | None  # None if nothing is learned from the row
    score: float = float("nan")
    rank: int = -1
    view: Sequence[Segment] | None = None  # the same actions, after the prompt that contains the critique

    @property
    def tokens(self) -> int:
        return sum(len(segment.ids) for segment in self.dialogue)


@dataclass(frozen=True)
class CritiqueRows:
    """Turn a round of critiques and revisions into training rows.

    Args:
        learn: the kinds of rows.
            `attempts`: the learner's own replies, with their rewards. `revisions`: each revision as an expert's reply
            to the original prompt. `pairs`: criticised replies and their revisions, ranked, both as replies of the
            learner; after several rounds the last revisions rank highest, and the first attempts lowest. `critiques`:
            each critique as an expert's reply to the prompt and the attempt. `conditioned`: the attempt as an expert's
            reply to the prompt and the critique. `hindsight`: a criticised reply and its revision in one row, announced
            as bad and good, in either order. `anchors`: the reviser's replies to prompts that are out of scope for the
            critic. If a reply has no errors, `critiques` and `conditioned` use the task's `praise` as its critique.
        scored: whether replies have rewards and scores. If not, the rows have no rewards.
    """

    teacher: Teacher
    learn: tuple[Learn, ...]
    scored: bool = True

    def rows(
        self, reviews: Sequence[Review], revisions: Sequence[Revision], anchors: Sequence[tuple[int, Episode]] = ()
    ) -> tuple[list[Row], int]:
        """Return all rows that fit the context, and the number of rows that do not fit.

        Args: reviews: the critiques of the first attempts; revisions: the revisions to learn from; anchors: pairs of an
            attempt's index and the anchor that replaces the attempt.
        """
        candidates = self._of_reviews(reviews) + self._of_revisions(revisions)
        if "pairs" in self.learn:
            candidates += ranked_pairs(revisions)
        candidates += [Row(_dialogue(episode, EXPERT), of, "anchors") for of, episode in anchors]
        rows = [row for row in candidates if self.teacher.fits(row.tokens)]
        return rows, len(candidates) - len(rows)

    def batch(self, rows: Sequence[Row], attempts: Sequence[Episode], replies: int) -> Batch:
        """Make one batch of the rows, grouped by prompt.

        If `learn` has `pairs` but neither `attempts` nor `revisions`, a group is instead an attempt with its own
        revisions.

        Args: attempts: all attempts, with those of one prompt next to each other; replies: number of attempts per
            prompt.
        Returns: the batch. `extra["attempt"]` and `extra["revision"]` mark the rows of these kinds. `view` has the same
            actions after the prompt that contains the critique; a row without a critique has no valid step there. A
            prompt without rows gets one row without valid steps, so that groups, minibatches and ranks stay even.
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
        return replace(batch, view=_view(rows)) if {"attempts", "revisions"} & set(self.learn) else batch

    def _of_reviews(self, reviews: Sequence[Review]) -> list[Row]:
        task = self.teacher.sentences
        rows: list[Row] = []
        for review in reviews:
            case, turn = review.episode.prompt.case, review.episode.turns[0]
            words = review.critique or task.praise
            if "attempts" in self.learn:
                view = None if review.ids is None else [Segment(review.ids), Segment(turn.tokens, LEARNER)]
                rows.append(Row(_dialogue(review.episode), review.of, "attempts", review.episode.score, view=view))
            if "critiques" in self.learn and review.has_answer:
                ids = self.teacher.encoded(task.critique_prompt(case, review.reply))
                reply = self._reply(words)
                if ids is not None and reply is not None:
                    rows.append(Row([Segment(ids), Segment(reply, EXPERT)], review.of, "critiques"))
            if "conditioned" in self.learn and review.has_answer:
                ids = self.teacher.encoded(task.conditioned_prompt(case, words))
                if ids is not None:
                    rows.append(Row([Segment(ids), Segment(turn.tokens, EXPERT)], review.of, "conditioned"))
        return rows

    def _reply(self, words: str) -> list[int] | None:
        """The ids of a critique as a reply; None if it spells a special token, or has a word without an id."""
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
                view = [Segment(review.ids), Segment(turn.tokens, EXPERT)]
                rows.append(Row(reply, review.of, "revisions", revision.episode.score, view=view))
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
        """The prompt, followed by the text that announces a good or a bad reply."""
        return with_last(case.prompt, lambda text: text + self.teacher.sentences.announced(good))

    def _between(self, prompt: PromptText, good: bool, end: int | None) -> list[int]:
        """The ids that announce the second reply; in a chat they are a user's turn.

        Args: end: the token that ended the first reply, if any.
        Raises:
            ValueError: the chat template does not accept another turn.
        """
        form, text = self.teacher.format, self.teacher.sentences.announced(good)
        posed = form.posed(prompt)
        return form.tokenizer.encode(text) if isinstance(posed, str) else form.turn(text.strip(), posed, end)

    def check(self, case: Case) -> None:
        """Check before training that the chat template accepts `hindsight` rows.  Raises ValueError: they are not."""
        if "hindsight" not in self.learn:
            return
        try:
            self._between(self._announced(case, True), False, self.teacher.format.tokenizer.eos)
        except ValueError as error:
            raise ValueError(
                f"learn: hindsight has two replies in a row: {error}; choose other kinds of rows"
            ) from None


def ranked_pairs(revisions: Sequence[Revision]) -> list[Row]:
    """Ranked rows: each criticised reply once, and the revisions that were not revised again.

    A reply of a later round ranks above replies of earlier rounds. Revisions that were not revised again rank first.
    """
    criticised = {id(revision.review.episode): revision.review for revision in revisions}
    rounds = max((review.round for review in criticised.values()), default=0)
    rows = [_of_learner(review.episode, review.of, rank=1 + rounds - review.round) for review in criticised.values()]
    last = [revision for revision in revisions if id(revision.episode) not in criticised]
    return rows + [_of_learner(revision.episode, revision.review.of, rank=0) for revision in last]


def _of_learner(episode: Episode, of: int, rank: int) -> Row:
    return Row(_dialogue(episode), of, "pairs", episode.score, rank)


def _dialogue(episode: Episode, by: int = LEARNER) -> list[Segment]:
    return [Segment(episode.prompt.ids), replace(reply_segment(episode.turns[0]), by=by)]


def _view(rows: Sequence[Row]) -> Batch:
    """The same actions as in `rows`, after the prompts with critiques; rows without a critique have no valid step."""
    dialogues = [row.dialogue if row.view is None else row.view for row in rows]
    view = as_batch([[Segment(part.ids, part.by) for part in dialogue] for dialogue in dialogues])
    has_view = torch.tensor([row.view is not None for row in rows])[:, None]
    assert view.expert_mask is not None
    return replace(
        view, valid=view.valid & has_view, mask=view.mask & has_view, expert_mask=view.expert_mask & has_view
    )
