"""Rounds of critique and revision in every epoch: what the policy replies, what is said of it, what that is made to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from data_modules.ranges import at_least
from data_modules.text.checks import refuse_other_ids, refuse_short_context
from data_modules.text.critics import Acting, Checked, Critic, CriticOfGivenReplies, GivenReply, Reviser
from data_modules.text.critique_rows import CritiqueRows, Learn
from data_modules.text.environment import Revisable, TextEnvironment
from data_modules.text.episode import Episode, Prompt
from data_modules.text.given_attempts import given_attempts
from data_modules.text.model_critic import ModelCritic
from data_modules.text.reply_judge import ReplyJudge
from data_modules.text.revision import Keep, Review, Revision, criticism, keep_revisions
from data_modules.text.revision_figures import RevisionFigures
from data_modules.text.task_module import drawn
from data_modules.text.teacher import Teacher, Words
from data_modules.text.transcript import write_tables
from data_modules.text.wording import Wording
from lightning_nlf.batch import Actor, Batch, Replier, Sampling, Scorer, Workload
from lightning_nlf.numbers import Size


class RevisionDataModule(RevisionFigures):
    """Plays a task of one turn with the model that is being trained, has its replies criticised and revised, and
    makes rows of all that.

    Whether the critiques help is logged at every evaluation: what a reply earns after one revision (`revised`), and
    the same with the critique of another reply (`revised_shuffled`) and one that fits any (`revised_placebo`). With a
    scope and a frozen reviser also how far replies that the critiques are not about went from what it would say
    (`drift`).

    Args:
        task: with `critique`, and `Revisable`.
        critic: who says what is wrong with replies; by default the task. With a file of people's critiques
            (`data_modules.feedback.FileCritic`) the attempts are its replies, `prompts` of them a collection, each a
            group of its own, and the policy did not say them: see there.
        learn: the kinds of rows, of `CritiqueRows`.
        author: who writes the attempts, such as a frozen start, which makes the method offline; by default the policy.
            Then there are no `attempts` to learn from: they are not the policy's.
        reviser: who revises, such as a frozen start; by default the policy itself, which easily unlearns it. A
            `Replier` reads the policy's ids; of one that writes texts (`Reviser`) no log-probabilities are known, so
            its revisions are a certain expert's, +∞, and each is a feedback call.
        rounds: of critique and revision; a revision is criticised and revised again.
        revisions: of each criticised reply.
        keep: which revisions make rows: `best` of its reply's by score, `better` than the reply by score, those that
            are `approved`, when the teacher criticises them too and has nothing to say, or all.
        words: whose critiques, of `Teacher`; the controls.
        scored: replies have scores. Without, or where nobody pays, there are no rewards to learn from, and none are
            counted.
        reward: who pays in place of the task's rule, such as a reward model or a judge.
        wording: the sentences around a critique, as turns of a chat; by default the task's own, or, where these are
            plain text and prompts go through a chat template, those of `Wording`.
        scope: what the teacher speaks about, by the facts of a case: `{kind: level}`. Replies to other prompts are
            neither criticised nor revised; `learn: [anchors]` makes rows of what the reviser replies to them.
        unfinished: of attempts that `max_new` cut: `keep` them, or `reject`: play them again, `resamples` times at
            most, and then keep them.
        prompts, replies, max_new, context …: of `TextTaskDataModule`.

    The critic is asked in batches. `critiques` and `feedback_calls` count its answers; tokens that a model of ours
    writes as critic or reviser are `env_steps`. `critic_<name>` and `reviser_<name>` are what these two count, such as
    the `calls` and `prompt_tokens` of an endpoint. What an evaluation asks is counted nowhere, but off a budget.

    Raises:
        ValueError: a knob out of range, a task without revisions, or `keep` by scores that are not given; at `setup` a
            critic, a reviser or a `reward` of other ids, one that cannot read as much, `keep` by scores where nobody
            pays, sentences in turns of a chat without a chat template, or no critic where the task is none.
    """

    def __init__(
        self,
        task: TextEnvironment,
        critic: Critic | None = None,
        learn: tuple[Learn, ...] = ("attempts", "revisions"),
        author: Replier | None = None,
        reviser: Replier | Reviser | None = None,
        rounds: Size = 1,
        revisions: Size = 1,
        keep: Keep = "all",
        words: Words = "task",
        scored: bool = True,
        reward: Scorer | ReplyJudge | None = None,
        wording: Wording | None = None,
        scope: dict[str, str] | None = None,
        unfinished: Literal["keep", "reject"] = "keep",
        **kwargs: Any,
    ) -> None:
        super().__init__(task=task, **kwargs)
        self.critic, self.author, self.reviser, self.reward = critic, author, reviser, reward
        self.rounds, self.revisions, self.keep = rounds, revisions, keep
        self.scored, self.scope, self.unfinished = scored, scope or {}, unfinished
        self.teacher = Teacher(self.conversation, self.context, words, critic, wording)
        self.rows = CritiqueRows(self.teacher, tuple(learn), scored)
        self.criticised: list[dict[str, str]] = []  # of the last collection, for people to read
        self.given: list[GivenReply] = []  # the attempts, of a critic that brings them
        self._refuse_knobs()
        self.counters |= {"critiques": 0} | dict.fromkeys(self._costs(), 0)

    def _refuse_knobs(self) -> None:
        """Raises ValueError: a knob out of range, or two that contradict each other."""
        learn, kind = self.rows.learn, type(self.task).__name__
        if self.unfinished not in ("keep", "reject"):
            raise ValueError(f"unfinished: got {self.unfinished}; rounds of revision keep or reject what is cut")
        at_least(1, rounds=self.rounds, revisions=self.revisions)
        worded = isinstance(self.task, Revisable) or self.teacher.wording is not None
        if not worded or self.task.turns > 1:
            raise ValueError(f"task: {kind} says no prompts for revisions, or has more than one turn")
        if not learn:
            raise ValueError("learn: nothing is learned; name at least one kind of row")
        if not self.scored and self.keep in ("best", "better"):
            raise ValueError(f"keep: {self.keep} goes by the score, and scored is false; approved goes by critiques")
        if self.author is not None and "attempts" in learn:
            raise ValueError("learn: attempts are the policy's own, and an author writes them; leave one of them out")
        if "anchors" in learn and (self.reviser is None or isinstance(self.reviser, Reviser) or not self.scope):
            raise ValueError(
                "learn: anchors are a frozen reviser's replies out of scope; give a scope, and a reviser that replies "
                "in the policy's tokens, such as CheckpointTextExpert"
            )
        brings = isinstance(self.critic, CriticOfGivenReplies)
        asked_again = {"rounds": self.rounds > 1, "keep": self.keep == "approved", "author": self.author is not None}
        for knob in (knob for knob, turned in asked_again.items() if brings and turned):
            raise ValueError(
                f"{knob}: the critic knows the replies of its file and no others, so these are the attempts, and what "
                "became of them is not criticised; leave it out"
            )

    def setup(self, stage: str) -> None:
        if self.cases:
            return
        super().setup(stage)
        case = self.cases["train"][0].case
        if self.critic is None:
            self.task.critique(case, "", 0)  # a task that is no critic says so
        every = [prompt.case for split in self.cases.values() for prompt in split]
        for name, teacher in {"critic": self.critic, "reviser": self.reviser}.items():
            if isinstance(teacher, Checked):
                teacher.check(name, every, self.teacher.sentences, self.teacher.format)
        if isinstance(self.reward, ReplyJudge):
            self.reward.check(every)
        self.teacher.check(case)
        self.rows.check(case)
        if isinstance(self.critic, CriticOfGivenReplies):
            self.given = self.critic.replies([prompt.case for prompt in self.cases["train"]], self.tokenizer)
        self._settle_scores()
        refuse_short_context("reviser", self.reviser, self.longest_row)
        refuse_short_context("author", self.author, super().longest_row)
        refuse_short_context("reward", self.reward, super().longest_row)

    def _settle_scores(self) -> None:
        """Without scores where nobody pays.  Raises ValueError: what is kept goes by them."""
        if self.pays:
            return
        if self.keep in ("best", "better"):
            raise ValueError(
                f"keep: {self.keep} goes by the score, and nobody pays: {type(self.task).__name__} has no rule; give a "
                "reward, such as a reward model or a judge, or keep what is approved"
            )
        self.scored = False
        self.rows = replace(self.rows, scored=False)

    def check_tokenizer(self) -> None:
        """Raises ValueError: a reviser, an author or a `reward` of other ids."""
        for name, model in {"reviser": self.reviser, "author": self.author, "reward": self.reward}.items():
            refuse_other_ids(name, model, self.tokenizer.digest)

    @property
    def longest_row(self) -> int:
        """Replies are quoted behind prompts, as long as the context has room."""
        return max(super().longest_row, self.context or 0)

    @property
    def workload(self) -> Workload:
        """As if rows of every kind were as long as attempts, and critiques and revisions read as much as is learned.

        What others write is not sampled here.
        """
        work, kinds = super().workload, len(self.rows.learn)
        given, outside = isinstance(self.critic, CriticOfGivenReplies), isinstance(self.reviser, Reviser)
        attempts, critiques, revisions = work.collection * (not given), Sampling(), Sampling()
        if isinstance(self.critic, ModelCritic):
            critiques = Sampling(work.tokens, work.rows * self.critic.max_new) * self.rounds
        if self.revises and not outside:
            revisions = Sampling(work.tokens, work.collection.new) * self.rounds * self.revisions
        collection = attempts + critiques + revisions
        return replace(work, rows=work.rows * kinds, tokens=work.tokens * kinds, collection=collection)

    @property
    def group_size(self) -> int:
        return 1 if isinstance(self.critic, CriticOfGivenReplies) else self.replies

    # ---- collection

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        self.refuse_too_few("prompts", self.prompts, "groups")
        for average in self.averages:
            average.follow(actor)
        before = self._costs()
        played, spent, again = self._attempts(actor, rng)
        attempts = self._pay(played) if self.scored else played
        acting = self._acting(actor)
        inside = [place for place, attempt in enumerate(attempts) if self._in_scope(attempt)]
        reviews = self.teacher.reviews(acting, [attempts[place] for place in inside], inside, rng)
        made, again_reviewed = self._rounds(actor, acting, reviews, rng)
        anchors = self._anchors(actor, attempts, set(inside), rng)
        rows, too_long = self.rows.rows(reviews, keep_revisions(made, again_reviewed, self.keep), anchors)
        batch = self.rows.batch(rows, attempts, self.group_size)
        counts = self.scored and (self.reward is None or isinstance(self.reward, ReplyJudge))
        paid = (len(attempts) + len(made)) * counts
        written = isinstance(self.reviser, Reviser)
        spent += sum(episode.decided for _, episode in anchors)
        spent += 0 if written else sum(revision.episode.decided for revision in made)
        critiques = len(reviews) + len(again_reviewed)
        self._count(before, spent, critiques, critiques + paid + len(made) * written)
        self.criticised = criticism(reviews, made)
        self._tell(played, torch.tensor([episode.score for episode in attempts]), again)
        self._tell_of(reviews, made, too_long, len(rows) + too_long)
        return batch

    def _attempts(self, actor: Actor, rng: np.random.Generator) -> tuple[list[Episode], int, int]:
        """As `_played`; an author replies to the prompt alone, whatever the policy's ends with."""
        if isinstance(self.critic, CriticOfGivenReplies):
            return given_attempts(self.teacher, drawn(self.given, self._share(self.prompts), rng), actor), 0, 0
        prompts = self._draw(rng)
        if self.author is None:
            return self._played(actor, prompts, rng)
        plain = [Prompt(each.case, self.teacher.format.ids(each.case.prompt)) for each in prompts]
        return self._played(cast(Actor, self._placed(self.author)), plain, rng)  # nothing else of an actor is asked

    def _rounds(
        self, actor: Actor, acting: Acting, reviews: Sequence[Review], rng: np.random.Generator
    ) -> tuple[list[Revision], list[Review]]:
        """The revisions of all rounds, and what the teacher says of those that it is asked about.

        None where nobody learns from them, and nobody says what they earn.
        """
        if not self.revises:
            return [], []
        reviser = self._reviser(actor)
        made = latest = self._pay_revisions(self.teacher.revisions(acting, reviser, reviews, rng, self.revisions))
        every: list[Review] = []
        for number in range(1, self.rounds + (self.keep == "approved")):
            of = [revision.review.of for revision in latest]
            again = self.teacher.reviews(acting, [revision.episode for revision in latest], of, rng, number)
            every += again
            if number < self.rounds:
                latest = self._pay_revisions(self.teacher.revisions(acting, reviser, again, rng))
                made = [*made, *latest]
        return made, every

    def _anchors(
        self, actor: Actor, attempts: Sequence[Episode], inside: set[int], rng: np.random.Generator
    ) -> list[tuple[int, Episode]]:
        """What the reviser replies in the place of each attempt out of scope."""
        outside = [place for place in range(len(attempts)) if place not in inside]
        if "anchors" not in self.rows.learn or not outside:
            return []
        seeds = rng.integers(2**62, size=(len(outside), 1))
        reviser = cast(Replier, self._reviser(actor))
        played = self.conversation.play(reviser, [attempts[place].prompt for place in outside], seeds)
        return list(zip(outside, played, strict=True))

    # ---- for people

    def exhibits(self, folder: Path) -> list[Path]:
        """Also `critiques.md` and `.html`: replies of the last collection, what was wrong with them, and revisions."""
        paths = super().exhibits(folder)
        return paths + (write_tables(self.criticised, folder, "critiques") if self.criticised else [])

    # ---- checkpoint

    def state_dict(self) -> dict[str, Any]:
        averages = [average.average for average in self.averages]
        return super().state_dict() | ({"averages": averages} if averages else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for average, weights in zip(self.averages, state_dict.get("averages", ()), strict=False):
            average.average = dict(weights)
