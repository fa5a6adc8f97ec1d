"""Rounds of critique and revision in every epoch: what the policy replies, what is said of it, what that is made to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from data_modules.ranges import at_least
from data_modules.text.checks import refuse_other_ids, refuse_short_context
from data_modules.text.critique_rows import CritiqueRows, Learn
from data_modules.text.environment import Revisable, TextEnvironment
from data_modules.text.episode import Episode, Prompt
from data_modules.text.labelling import Labeller, densities
from data_modules.text.revision import Keep, Placed, Review, Revision, Teacher, Words, keep_revisions
from data_modules.text.task_module import TextTaskDataModule
from lightning_nlf.batch import Actor, Batch, Replier
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.numbers import Size


class RevisionDataModule(TextTaskDataModule):
    """Plays a task of one turn with the model that is being trained, has its replies criticised and revised, and
    makes rows of all that.

    Whether the critiques help is logged at every evaluation: what a reply earns after one revision (`revised`), and
    the same with the critique of another reply (`revised_shuffled`) and one that fits any (`revised_placebo`). With a
    scope and a frozen reviser also how far replies that the critiques are not about went from what it would say
    (`drift`).

    Args:
        task: with `critique`, and `Revisable`.
        learn: the kinds of rows, of `CritiqueRows`.
        author: who writes the attempts, such as a frozen start, which makes the method offline; by default the policy.
            Then there are no `attempts` to learn from: they are not the policy's.
        reviser: who revises, such as a frozen start; by default the policy itself, which easily unlearns it.
        rounds: of critique and revision; a revision is criticised and revised again.
        revisions: of each criticised reply.
        keep: which revisions make rows: `best` of its reply's by score, `better` than the reply by score, those that
            are `approved`, when the teacher criticises them too and has nothing to say, or all.
        words: whose critiques, of `Teacher`; the controls.
        scored: replies have scores. Without, there are no rewards to learn from, and none are counted.
        scope: what the teacher speaks about, by the facts of a case: `{kind: level}`. Replies to other prompts are
            neither criticised nor revised; `learn: [anchors]` makes rows of what the reviser replies to them.
        unfinished: of attempts that `max_new` cut: `keep` them, or `reject`: play them again, `resamples` times at
            most, and then keep them.
        prompts, replies, max_new, context …: of `TextTaskDataModule`. The task's rule pays.

    Raises:
        ValueError: a knob out of range, a task without revisions, or `keep` by scores that are not given; at `setup` a
            reviser of other ids, or one that cannot read as much.
    """

    def __init__(
        self,
        task: TextEnvironment,
        learn: tuple[Learn, ...] = ("attempts", "revisions"),
        author: Replier | None = None,
        reviser: Replier | None = None,
        rounds: Size = 1,
        revisions: Size = 1,
        keep: Keep = "all",
        words: Words = "task",
        scored: bool = True,
        scope: dict[str, str] | None = None,
        unfinished: Literal["keep", "reject"] = "keep",
        **kwargs: Any,
    ) -> None:
        super().__init__(task=task, **kwargs)
        if unfinished not in ("keep", "reject"):
            raise ValueError(f"unfinished: got {unfinished}; rounds of revision keep or reject what is cut")
        at_least(1, rounds=rounds, revisions=revisions)
        if not isinstance(task, Revisable) or task.turns > 1:
            raise ValueError(f"task: {type(task).__name__} says no prompts for revisions, or has more than one turn")
        if not learn:
            raise ValueError("learn: nothing is learned; name at least one kind of row")
        if not scored and keep in ("best", "better"):
            raise ValueError(f"keep: {keep} goes by the score, and scored is false; approved goes by critiques")
        if author is not None and "attempts" in learn:
            raise ValueError("learn: attempts are the policy's own, and an author writes them; leave one of them out")
        self.author = author
        self.reviser, self.rounds, self.revisions, self.keep = reviser, rounds, revisions, keep
        self.scored, self.scope, self.unfinished = scored, scope or {}, unfinished
        if "anchors" in learn and (reviser is None or not scope):
            raise ValueError("learn: anchors are a frozen reviser's replies out of scope; give a reviser and a scope")
        self.teacher = Teacher(self.conversation, self.context, words)
        self.rows = CritiqueRows(self.teacher, tuple(learn), scored)
        self.counters |= {"critiques": 0}

    def setup(self, stage: str) -> None:
        if self.cases:
            return
        super().setup(stage)
        refuse_short_context("reviser", self.reviser, self.longest_row)
        refuse_short_context("author", self.author, super().longest_row)

    def check_tokenizer(self) -> None:
        """Raises ValueError: a reviser or an author of other ids."""
        refuse_other_ids("reviser", self.reviser, self.tokenizer.digest)
        refuse_other_ids("author", self.author, self.tokenizer.digest)

    @property
    def longest_row(self) -> int:
        """Replies are quoted behind prompts, as long as the context has room."""
        return max(super().longest_row, self.context or 0)

    # ---- collection

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        self.refuse_too_few("prompts", self.prompts, "groups")
        attempts, spent, again = self._attempts(actor, rng)
        inside = [place for place, attempt in enumerate(attempts) if self._in_scope(attempt)]
        reviews = self.teacher.reviews([attempts[place] for place in inside], inside, rng)
        made, said = self._revised(actor, reviews, rng)
        anchors = self._anchors(actor, attempts, set(inside), rng)
        rows, too_long = self.rows.rows(reviews, keep_revisions(made, said, self.keep), anchors)
        batch = self.rows.batch(rows, attempts, self.replies)
        scores = (len(attempts) + len(made)) * self.scored
        tokens = spent + sum(revision.episode.decided for revision in made)
        tokens += sum(played.decided for _, played in anchors)
        critiques = len(reviews) + len(said)
        self.count(env_steps=tokens, critiques=critiques, feedback_calls=critiques + scores)
        self._tell(attempts, torch.tensor([episode.score for episode in attempts]), again)
        self._tell_of(reviews, made, too_long, len(rows) + too_long)
        return batch

    def _attempts(self, actor: Actor, rng: np.random.Generator) -> tuple[list[Episode], int, int]:
        """As `_played`; an author replies to the prompt alone, whatever the policy's ends with."""
        prompts = self._draw(rng)
        if self.author is None:
            return self._played(actor, prompts, rng)
        plain = [Prompt(each.case, self.tokenizer.encode_prompt(each.case.prompt)) for each in prompts]
        author = Placed(self.author, self.trainer.strategy.root_device)
        return self._played(cast(Actor, author), plain, rng)  # nothing else of an actor is asked here

    def _revised(
        self, actor: Actor, reviews: Sequence[Review], rng: np.random.Generator
    ) -> tuple[list[Revision], list[Review]]:
        """The revisions of all rounds, and what the teacher says of those that it is asked about."""
        reviser = self._reviser(actor)
        made = latest = self.teacher.revisions(reviser, reviews, rng, self.revisions)
        said: list[Review] = []
        for number in range(1, self.rounds + (self.keep == "approved")):
            of = [revision.review.of for revision in latest]
            again = self.teacher.reviews([revision.episode for revision in latest], of, rng, number)
            said += again
            if number < self.rounds:
                latest = self.teacher.revisions(reviser, again, rng)
                made = [*made, *latest]
        return made, said

    def _reviser(self, actor: Actor) -> Replier:
        return actor if self.reviser is None else Placed(self.reviser, self.trainer.strategy.root_device)

    def _in_scope(self, attempt: Episode) -> bool:
        return all(attempt.prompt.case.facts.get(name) == value for name, value in self.scope.items())

    def _anchors(
        self, actor: Actor, attempts: Sequence[Episode], inside: set[int], rng: np.random.Generator
    ) -> list[tuple[int, Episode]]:
        """What the reviser replies in the place of each attempt out of scope."""
        outside = [place for place in range(len(attempts)) if place not in inside]
        if "anchors" not in self.rows.learn or not outside:
            return []
        seeds = rng.integers(2**62, size=(len(outside), 1))
        played = self.conversation.play(self._reviser(actor), [attempts[place].prompt for place in outside], seeds)
        return list(zip(outside, played, strict=True))

    def _tell_of(self, reviews: Sequence[Review], made: Sequence[Revision], too_long: int, rows: int) -> None:
        """Averages over all ranks, beside those of the attempts.  too_long: of so many `rows` there would be."""
        wrong = [review for review in reviews if review.critique is not None]
        sums = torch.tensor(
            [
                [sum(revision.gain for revision in made), len(made)],
                [len(wrong), len(reviews)],
                [sum(review.ids is None for review in wrong), len(wrong)],  # no room, or it cannot be quoted
                [too_long, rows],
            ],
            dtype=torch.float64,
        )
        totals = self._sum_over_ranks(sums)
        shares = (totals[:, 0] / totals[:, 1].clamp(min=1)).tolist()
        self.statistics |= dict(zip(("gain", "criticised", "unrevised", "left_out"), shares, strict=True))
        if shares[2] > 0:
            self._warn_once(
                "some criticised replies are not revised (train/unrevised is their share): they spell a special token, "
                f"or the context of {self.context} has no room for prompt, reply, critique and revision"
            )
        if shares[3] > 0:
            self._warn_once(
                f"some rows are longer than the context of {self.context} and left out (train/left_out is their share)"
            )

    # ---- evaluation

    def asked(
        self, actor: Actor, rng: np.random.Generator, episodes: list[Episode], deterministic: bool
    ) -> dict[str, Tensor]:
        """What the replies earn after one revision by the task's critique, by another's, and by one that fits any.

        Of samples also `drift`, if there is a scope and a reviser that says how likely tokens are.
        """
        reviser, kinds = self._reviser(actor), {"": "task", "_shuffled": "shuffled", "_placebo": "placebo"}
        found = {
            f"revised{name}": torch.tensor(
                replace(self.teacher, words=words).outcome(reviser, episodes, rng, deterministic)  # type: ignore[arg-type]
            )
            for name, words in kinds.items()
        }
        if self.scope and not deterministic and isinstance(self.reviser, Labeller):
            found["drift"] = self._drift(self.reviser, episodes)
        return found

    def _drift(self, start: Labeller, episodes: list[Episode]) -> Tensor:
        """log π(y|x) − log π₀(y|x) of replies out of scope, (episodes,), NaN in scope; its mean is KL(π ‖ π₀)."""
        batch, _ = self.conversation.batch(episodes)
        assert batch.log_probs is not None
        there = densities(batch, start, batch.valid, self.trainer.strategy.root_device)
        inside = torch.tensor([self._in_scope(episode) for episode in episodes])
        return torch.where(inside, torch.nan, row_sums(batch.log_probs - there, batch.valid))
