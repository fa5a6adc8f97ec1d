"""Rounds of critique and revision: in every epoch replies are criticised, revised, and turned into training rows."""

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
from data_modules.text.task_module import draw_items
from data_modules.text.teacher import Teacher, Words
from data_modules.text.transcript import write_tables
from data_modules.text.wording import Wording
from lightning_nlf.batch import Actor, Batch, Replier, Sampling, Scorer, Workload
from lightning_nlf.numbers import Size


class RevisionDataModule(RevisionFigures):
    """Sample replies from the policy, have them criticised and revised, and train on both. For tasks of one turn.

    Every evaluation logs whether critiques help: the score of a reply after a revision with the reply's critique
    (`revised`), with the critique of a different reply (`revised_shuffled`), and with a critique that fits any reply
    (`revised_placebo`). With a scope and a frozen reviser, evaluations also log how far the policy has moved from the
    reviser on prompts out of scope (`drift`).

    Args:
        task: text task that is `Revisable` and has critiques.
        critic: criticises replies; by default the task does. With a file of people's critiques
            (`data_modules.feedback.FileCritic`) the attempts are the replies in that file, `prompts` of them per
            collection. Each of these replies is a separate group, and was not sampled by the policy; see `FileCritic`.
        learn: the kinds of rows, see `CritiqueRows`.
        author: model that writes the attempts; by default the policy. An author such as a frozen copy of the start
            makes the method offline. With an author, `learn` cannot have `attempts`, because the policy did not write
            them.
        reviser: model that revises the replies, such as a frozen copy of the start. By default the policy, which easily
            unlearns how to revise. A `Replier` must use the policy's token ids. A `Reviser` writes text with unknown
            log-probabilities, so they are set to +∞, as for an expert that is certain, and each revision counts as a
            feedback call.
        rounds: number of rounds of critique and revision. From the second round on, revisions are criticised and
            revised again.
        revisions: number of revisions of each criticised reply.
        keep: which revisions to learn from. `best`: for each attempt the revision with the highest score; `better`: the
            revisions with a higher score than the reply; `approved`: the revisions in which the teacher, asked for
            another critique, finds nothing wrong; `all`: every revision.
        words: which critiques to use, see `Teacher`; for control experiments.
        scored: whether to score replies. If not, or if there is nothing to score them, the rows have no rewards, and no
            scores are counted as feedback.
        reward: reward model or judge that scores replies in place of the task's rule.
        wording: the texts around a critique, as turns of a chat. By default the task's own texts, or the texts of
            `Wording` if the task's are plain text and prompts go through a chat template.
        scope: restricts critiques to cases with these facts, for example `{kind: level}`. Replies to other prompts are
            neither criticised nor revised; `learn: [anchors]` adds rows with the reviser's replies to those prompts.
        unfinished: what to do with attempts that were cut off at `max_new`. `keep`: use them as they are. `reject`:
            sample them again, at most `resamples` times, then keep them.
        prompts, replies, max_new, context …: see `TextTaskDataModule`.

    The critic is called in batches. `critiques` and `feedback_calls` count the critic's answers. Tokens of a local
    model that is critic or reviser count as `env_steps`. `critic_<name>` and `reviser_<name>` are the counters of
    critic and reviser, such as `calls` and `prompt_tokens` of an endpoint. Calls during an evaluation are not counted,
    but they do use up a budget.

    Raises:
        ValueError: a setting is out of range, the task is not `Revisable`, or `keep` needs scores and `scored` is
            false; or at `setup`, a critic, reviser or `reward` has a different tokenizer or too short a context; `keep`
            needs scores and nothing scores replies; `wording` needs a chat template and there is none; or there is no
            critic.
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
        self.criticised: list[dict[str, str]] = []  # table of the last collection, for people
        self.file_attempts: list[GivenReply] = []  # attempts that the critic provides
        self._refuse_knobs()
        self.counters |= {"critiques": 0} | dict.fromkeys(self._costs(), 0)

    def _refuse_knobs(self) -> None:
        """Check the settings.  Raises ValueError: one is out of range, or two of them contradict each other."""
        learn, kind = self.rows.learn, type(self.task).__name__
        if self.unfinished not in ("keep", "reject"):
            raise ValueError(f"unfinished: got {self.unfinished}, must be keep or reject with rounds of revision")
        at_least(1, rounds=self.rounds, revisions=self.revisions)
        worded = isinstance(self.task, Revisable) or self.teacher.wording is not None
        if not worded or self.task.turns > 1:
            raise ValueError(
                f"task: {kind} has no prompts for revisions, or has more than one turn; give a `wording`, or use a "
                "task of one turn"
            )
        if not learn:
            raise ValueError("learn: it is empty; give at least one kind of rows")
        if not self.scored and self.keep in ("best", "better"):
            raise ValueError(
                f"keep: {self.keep} needs scores, and scored is false; set keep: approved, or scored: true"
            )
        if self.author is not None and "attempts" in learn:
            raise ValueError(
                "learn: attempts must be the policy's own, and an author writes them; leave one of them out"
            )
        if "anchors" in learn and (self.reviser is None or isinstance(self.reviser, Reviser) or not self.scope):
            raise ValueError(
                "learn: anchors are replies of a frozen reviser to prompts out of scope; give a scope, and a reviser "
                "with the policy's tokenizer, such as CheckpointTextExpert"
            )
        from_file = isinstance(self.critic, CriticOfGivenReplies)
        needs_new = {"rounds": self.rounds > 1, "keep": self.keep == "approved", "author": self.author is not None}
        for knob in (knob for knob, is_set in needs_new.items() if from_file and is_set):
            raise ValueError(
                f"{knob}: the critic has critiques of the replies in its file only; these are the attempts, and it "
                f"cannot criticise new replies; leave {knob} out"
            )

    def setup(self, stage: str) -> None:
        if self.cases:
            return
        super().setup(stage)
        case = self.cases["train"][0].case
        if self.critic is None:
            self.task.critique(case, "", 0)  # raises an error if the task has no critiques
        every = [prompt.case for split in self.cases.values() for prompt in split]
        for name, teacher in {"critic": self.critic, "reviser": self.reviser}.items():
            if isinstance(teacher, Checked):
                teacher.check(name, every, self.teacher.sentences, self.teacher.format)
        if isinstance(self.reward, ReplyJudge):
            self.reward.check(every)
        self.teacher.check(case)
        self.rows.check(case)
        if isinstance(self.critic, CriticOfGivenReplies):
            self.file_attempts = self.critic.replies([prompt.case for prompt in self.cases["train"]], self.tokenizer)
        self._settle_scores()
        refuse_short_context("reviser", self.reviser, self.longest_row)
        refuse_short_context("author", self.author, super().longest_row)
        refuse_short_context("reward", self.reward, super().longest_row)

    def _settle_scores(self) -> None:
        """Switch scores off if nothing scores replies.  Raises ValueError: `keep` needs scores in that case."""
        if self.pays:
            return
        if self.keep in ("best", "better"):
            raise ValueError(
                f"keep: {self.keep} needs scores, and {type(self.task).__name__} has no rule that scores replies; give "
                "a reward, such as a reward model or a judge, or use approved"
            )
        self.scored = False
        self.rows = replace(self.rows, scored=False)

    def check_tokenizer(self) -> None:
        """Raises ValueError: the `reviser`, the `author` or the `reward` has a different tokenizer."""
        for name, model in {"reviser": self.reviser, "author": self.author, "reward": self.reward}.items():
            refuse_other_ids(name, model, self.tokenizer.digest)

    @property
    def longest_row(self) -> int:
        """The whole context, because prompts quote replies."""
        return max(super().longest_row, self.context or 0)

    @property
    def workload(self) -> Workload:
        """Estimate the work of an iteration, with rows and prompts of critiques and revisions as long as attempts.

        The estimate does not include text from endpoints or files.
        """
        work, kinds = super().workload, len(self.rows.learn)
        from_file, outside = isinstance(self.critic, CriticOfGivenReplies), isinstance(self.reviser, Reviser)
        attempts, critiques, revisions = work.collection * (not from_file), Sampling(), Sampling()
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
        episodes, spent, again = self._attempts(actor, rng)
        attempts = self._pay(episodes) if self.scored else episodes
        acting = self._acting(actor)
        inside = [place for place, attempt in enumerate(attempts) if self._in_scope(attempt)]
        reviews = self.teacher.reviews(acting, [attempts[place] for place in inside], inside, rng)
        revisions, later_reviews = self._rounds(actor, acting, reviews, rng)
        anchors = self._anchors(actor, attempts, set(inside), rng)
        rows, too_long = self.rows.rows(reviews, keep_revisions(revisions, later_reviews, self.keep), anchors)
        batch = self.rows.batch(rows, attempts, self.group_size)
        counts = self.scored and (self.reward is None or isinstance(self.reward, ReplyJudge))
        scores = (len(attempts) + len(revisions)) * counts
        from_text = isinstance(self.reviser, Reviser)
        spent += sum(episode.decided for _, episode in anchors)
        spent += 0 if from_text else sum(revision.episode.decided for revision in revisions)
        critiques = len(reviews) + len(later_reviews)
        self._count(before, spent, critiques, critiques + scores + len(revisions) * from_text)
        self.criticised = criticism(reviews, revisions)
        self._log_collection(episodes, torch.tensor([episode.score for episode in attempts]), again)
        self._log_round(reviews, revisions, too_long, len(rows) + too_long)
        return batch

    def _attempts(self, actor: Actor, rng: np.random.Generator) -> tuple[list[Episode], int, int]:
        """Sample attempts as in `_sample_episodes`. An author gets only the prompt, without the policy's suffix."""
        if isinstance(self.critic, CriticOfGivenReplies):
            replies = draw_items(self.file_attempts, self._share(self.prompts), rng)
            return given_attempts(self.teacher, replies, actor), 0, 0
        prompts = self._draw(rng)
        if self.author is None:
            return self._sample_episodes(actor, prompts, rng)
        plain = [Prompt(prompt.case, self.teacher.format.ids(prompt.case.prompt)) for prompt in prompts]
        author = cast(Actor, self._placed(self.author))  # only `reply` is used
        return self._sample_episodes(author, plain, rng)

    def _rounds(
        self, actor: Actor, acting: Acting, reviews: Sequence[Review], rng: np.random.Generator
    ) -> tuple[list[Revision], list[Review]]:
        """Make the revisions of all rounds, and get the teacher's critiques of revisions.

        Both are empty if nothing is learned from revisions and nothing scores them.
        """
        if not self.revises:
            return [], []
        reviser = self._reviser(actor)
        latest = self._pay_revisions(self.teacher.revisions(acting, reviser, reviews, rng, self.revisions))
        revisions = latest
        every: list[Review] = []
        for number in range(1, self.rounds + (self.keep == "approved")):
            of = [revision.review.of for revision in latest]
            again = self.teacher.reviews(acting, [revision.episode for revision in latest], of, rng, number)
            every += again
            if number < self.rounds:
                latest = self._pay_revisions(self.teacher.revisions(acting, reviser, again, rng))
                revisions = [*revisions, *latest]
        return revisions, every

    def _anchors(
        self, actor: Actor, attempts: Sequence[Episode], inside: set[int], rng: np.random.Generator
    ) -> list[tuple[int, Episode]]:
        """The reviser's reply to the prompt of each attempt out of scope, with the index of the attempt."""
        outside = [place for place in range(len(attempts)) if place not in inside]
        if "anchors" not in self.rows.learn or not outside:
            return []
        seeds = rng.integers(2**62, size=(len(outside), 1))
        reviser = cast(Replier, self._reviser(actor))
        episodes = self.conversation.play(reviser, [attempts[place].prompt for place in outside], seeds)
        return list(zip(outside, episodes, strict=True))

    # ---- for people

    def exhibits(self, folder: Path) -> list[Path]:
        """Also write `critiques.md` and `.html`, with replies, critiques and revisions of the last collection."""
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
