"""How replies are criticised and revised, by the task or by somebody else, and the prompts that this leads to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, cast

import numpy as np
import torch

from data_modules.judgements.schema import PromptText
from data_modules.text.conversation import Conversation
from data_modules.text.critics import UNHEARD, Acting, Critic, Reviser
from data_modules.text.environment import Case, Revisable
from data_modules.text.episode import Episode, Prompt, Turn
from data_modules.text.prompts import PromptFormat
from data_modules.text.revision import Review, Revision
from data_modules.text.wording import ChatWords, Wording
from data_modules.text.writer import Writer, Written
from lightning_nlf.batch import Replier

Words = Literal["task", "shuffled", "placebo"]


@dataclass(frozen=True)
class Teacher:
    """How a task's replies are criticised, and the prompts that this leads to.

    Args:
        words: the critique of the task or the critic; that of another reply, `shuffled`; or one that fits any,
            `placebo`. The last two are controls: what is gained by them was not in the words.
        context: tokens that a model can read.
        critic: who criticises, where the task does not.
        wording: the sentences around a critique, where they are not the task's.
    """

    conversation: Conversation
    context: int | None = None
    words: Words = "task"
    critic: Critic | None = None
    wording: Wording | None = None

    @cached_property
    def sentences(self) -> Revisable:
        """The sentences around a critique, as turns of a chat where prompts go through a chat template.

        Raises:
            ValueError: they are turns of a chat, and the tokenizer has no template.
        """
        task, tokenizer = self.conversation.task, self.conversation.tokenizer
        mend = "take a FolderTokenizer whose model has a chat template"
        if self.wording is not None:
            if not tokenizer.has_template:
                raise ValueError(f"wording: its sentences are turns of a chat: leave it out, or {mend}")
            return ChatWords(self.wording)
        assert isinstance(task, Revisable)
        cases = task.cases("train")
        plain = not cases or isinstance(task.revision_prompt(cases[0], "", ""), str)
        if plain:
            return task if self.format.template is None else ChatWords(Wording())
        if not tokenizer.has_template:
            kind = type(task).__name__
            raise ValueError(f"task: {kind} asks for revisions in turns of a chat: {mend}, or another task")
        return task

    @cached_property
    def format(self) -> PromptFormat:
        """Of prompts that quote a reply: without the policy's suffix."""
        return replace(self.conversation.format, suffix="")

    def acting(self, actor: Replier, device: torch.device) -> Acting:
        """The model that is being trained, for a critic or a reviser."""
        policy = Writer(actor, self.format, self.conversation.stops, self.context)
        return Acting(policy, self.sentences, device)

    # ---- critiques

    def critiques(self, acting: Acting, episodes: Sequence[Episode], rng: np.random.Generator) -> list[str | None]:
        """Of each reply, in their order: None where nothing is wrong, "" where nobody says."""
        seeds = rng.integers(2**32, size=len(episodes)).tolist()
        cases, replies = [each.prompt.case for each in episodes], [each.turns[0].text for each in episodes]
        if self.critic is None:
            task = self.conversation.task
            return [task.critique(*each) for each in zip(cases, replies, seeds, strict=True)]
        return self.critic.critiques(cases, replies, seeds, acting) if episodes else []

    def reviews(
        self, acting: Acting, episodes: Sequence[Episode], of: Sequence[int], rng: np.random.Generator, round: int = 0
    ) -> list[Review]:
        """Of each reply, in their order."""
        return self.reviewed(episodes, of, self.critiques(acting, episodes, rng), rng, round)

    def reviewed(
        self,
        episodes: Sequence[Episode],
        of: Sequence[int],
        critiques: Sequence[str | None],
        rng: np.random.Generator,
        round: int = 0,
        words: Words | None = None,
    ) -> list[Review]:
        """The same of critiques that are there, or of what `words`, by default the Teacher's, puts in their place."""
        words = self.words if words is None else words
        wrong = [place for place, critique in enumerate(critiques) if critique]
        instead = list(critiques)
        if words == "shuffled":
            partners = _of_another_prompt({place: episodes[place].prompt.case.id for place in wrong}, rng)
            instead = [critiques[partners[place]] if critique else critique for place, critique in enumerate(critiques)]
        elif words == "placebo":
            instead = [self.sentences.placebo if critique else critique for critique in critiques]
        reviews = [Review(episode, place, round) for episode, place in zip(episodes, of, strict=True)]
        return [self._criticised(*each) for each in zip(reviews, instead, strict=True)]

    def _criticised(self, review: Review, critique: str | None) -> Review:
        if critique is None:
            return review
        if critique == UNHEARD:
            return replace(review, heard=False)
        ids = self.encoded(self.sentences.revision_prompt(review.episode.prompt.case, review.reply, critique))
        fits = ids is not None and self.fits(len(ids) + self.conversation.max_new)
        return replace(review, critique=critique, ids=ids if fits else None)

    def check(self, case: Case) -> None:
        """Raises ValueError, before training: the chat template does not take the turns of a revision."""
        if self.format.template is None:
            return
        words = self.sentences
        try:
            self.format.ids(words.revision_prompt(case, words.praise, words.placebo))
        except ValueError as error:
            raise ValueError(f"chat: a revision is asked for in several turns: {error}; say chat: false") from None

    def fits(self, tokens: int) -> bool:
        """Whether a row of so many can be read."""
        return self.context is None or tokens <= self.context

    def encoded(self, prompt: PromptText) -> list[int] | None:
        """The ids of a prompt that quotes a reply; None where that spells a special token, which no text may."""
        try:
            return self.format.ids(prompt)
        except ValueError:
            return None

    # ---- revisions

    def revisions(
        self,
        acting: Acting,
        reviser: Replier | Reviser,
        reviews: Sequence[Review],
        rng: np.random.Generator,
        copies: int = 1,
        deterministic: bool = False,
    ) -> list[Revision]:
        """`copies` of each reply that has a critique, next to each other."""
        asked = [review for review in reviews if review.ids is not None]
        if not asked:
            return []
        seeds = rng.integers(2**62, size=(len(asked) * copies, 1))
        of = [review for review in asked for _ in range(copies)]
        if isinstance(reviser, Reviser):
            return self._of_texts(acting, reviser, of, seeds[:, 0].tolist())
        prompts = [Prompt(review.episode.prompt.case, cast(list[int], review.ids)) for review in asked]
        played = self.conversation.play(reviser, prompts, seeds, copies, deterministic)
        return [
            Revision(review, replace(episode, prompt=review.episode.prompt))
            for review, episode in zip(of, played, strict=True)
        ]

    def _of_texts(
        self, acting: Acting, reviser: Reviser, reviews: Sequence[Review], seeds: Sequence[int]
    ) -> list[Revision]:
        """Revisions that came as texts; none where there is no text, or one that the tokenizer cannot encode."""
        cases = [review.episode.prompt.case for review in reviews]
        replies, critiques = [review.reply for review in reviews], [review.critique or "" for review in reviews]
        texts = reviser.revisions(cases, replies, critiques, seeds, acting)
        episodes = [self._episode(review, text) for review, text in zip(reviews, texts, strict=True)]
        pairs = zip(reviews, episodes, strict=True)
        return [Revision(review, episode) for review, episode in pairs if episode is not None]

    def _episode(self, review: Review, written: Written | None) -> Episode | None:
        """The reply as if it had been played, as a certain expert's: log-probabilities +∞."""
        if written is None:
            return None
        tokenizer, prompt = self.conversation.tokenizer, review.episode.prompt
        try:
            tokens = tokenizer.encode_reply(written.text) + [tokenizer.eos] * written.finished
        except ValueError:
            return None
        if not tokens:
            return None
        outcome = self.conversation.task.begin(prompt.case).reply(written.text, written.finished)
        return Episode(prompt, [Turn(tokens, [math.inf] * len(tokens), written.finished, written.text, outcome)])

    def outcome(
        self,
        acting: Acting,
        reviser: Replier | Reviser,
        episodes: Sequence[Episode],
        critiques: Sequence[str | None],
        words: Words,
        rng: np.random.Generator,
        deterministic: bool,
    ) -> list[Episode]:
        """What each episode becomes by one revision; what needs none, or has no room for it, stays as it is."""
        reviews = self.reviewed(episodes, range(len(episodes)), critiques, rng, words=words)
        after = list(episodes)
        for revision in self.revisions(acting, reviser, reviews, rng, deterministic=deterministic):
            after[revision.review.of] = revision.episode
        return after


def _of_another_prompt(prompts: Mapping[int, str], rng: np.random.Generator) -> dict[int, int]:
    """For each place one of another prompt, each once, unless more than half of the places are of one prompt.

    In an order where those of a prompt lie together, as many places on as the largest prompt has.
    """
    lots = dict(zip(dict.fromkeys(prompts.values()), rng.permutation(len(set(prompts.values()))), strict=True))
    order = sorted(rng.permutation(list(prompts)).tolist(), key=lambda place: lots[prompts[place]])
    step = max(Counter(prompts.values()).values(), default=0)
    return dict(zip(order, order[step:] + order[:step], strict=True))
