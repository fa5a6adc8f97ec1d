"""Teacher of a text task: critiques of replies, and the prompts for revisions."""

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
    """Get critiques of replies from the task or a critic, and revisions from a reviser.

    Args:
        words: which critique a revision is based on. `task`: the critique from the task or critic; `shuffled`: the
            critique of a different reply; `placebo`: a critique that fits any reply. `shuffled` and `placebo` are
            controls, which show the gain of a revision without the information in a critique.
        context: number of tokens that a model can read.
        critic: critic that criticises replies in place of the task.
        wording: texts around a critique, in place of the task's texts.
    """

    conversation: Conversation
    context: int | None = None
    words: Words = "task"
    critic: Critic | None = None
    wording: Wording | None = None

    @cached_property
    def sentences(self) -> Revisable:
        """The texts around a critique. They are turns of a chat if prompts go through a chat template.

        Raises:
            ValueError: the texts are turns of a chat, and the tokenizer has no template.
        """
        task, tokenizer = self.conversation.task, self.conversation.tokenizer
        remedy = "use a FolderTokenizer whose model has a chat template"
        if self.wording is not None:
            if not tokenizer.has_template:
                raise ValueError(f"wording: its texts are turns of a chat: leave wording out, or {remedy}")
            return ChatWords(self.wording)
        assert isinstance(task, Revisable)
        cases = task.cases("train")
        plain = not cases or isinstance(task.revision_prompt(cases[0], "", ""), str)
        if plain:
            return task if self.format.template is None else ChatWords(Wording())
        if not tokenizer.has_template:
            kind = type(task).__name__
            raise ValueError(f"task: {kind} has revision prompts in turns of a chat: {remedy}, or another task")
        return task

    @cached_property
    def format(self) -> PromptFormat:
        """The format of prompts that quote a reply: the policy's format without the suffix."""
        return replace(self.conversation.format, suffix="")

    def acting(self, actor: Replier, device: torch.device) -> Acting:
        """The model in training, in the form that critics and revisers use."""
        policy = Writer(actor, self.format, self.conversation.stops, self.context)
        return Acting(policy, self.sentences, device)

    # ---- critiques

    def critiques(self, acting: Acting, episodes: Sequence[Episode], rng: np.random.Generator) -> list[str | None]:
        """The critique of each reply, in order: None if nothing is wrong, "" if the critic gave no answer."""
        seeds = rng.integers(2**32, size=len(episodes)).tolist()
        cases = [episode.prompt.case for episode in episodes]
        replies = [episode.turns[0].text for episode in episodes]
        if self.critic is None:
            task = self.conversation.task
            return [task.critique(*arguments) for arguments in zip(cases, replies, seeds, strict=True)]
        return self.critic.critiques(cases, replies, seeds, acting) if episodes else []

    def reviews(
        self, acting: Acting, episodes: Sequence[Episode], of: Sequence[int], rng: np.random.Generator, round: int = 0
    ) -> list[Review]:
        """Get a new critique of each reply, and return a review of each reply, in order."""
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
        """Make reviews from given critiques.  words: replaces the critiques, see the class; by default its setting."""
        words = self.words if words is None else words
        wrong = [place for place, critique in enumerate(critiques) if critique]
        instead = list(critiques)
        if words == "shuffled":
            partners = _of_another_prompt({place: episodes[place].prompt.case.id for place in wrong}, rng)
            instead = [critiques[partners[place]] if critique else critique for place, critique in enumerate(critiques)]
        elif words == "placebo":
            instead = [self.sentences.placebo if critique else critique for critique in critiques]
        reviews = [Review(episode, place, round) for episode, place in zip(episodes, of, strict=True)]
        return [self._criticised(*pair) for pair in zip(reviews, instead, strict=True)]

    def _criticised(self, review: Review, critique: str | None) -> Review:
        if critique is None:
            return review
        if critique == UNHEARD:
            return replace(review, has_answer=False)
        ids = self.encoded(self.sentences.revision_prompt(review.episode.prompt.case, review.reply, critique))
        fits = ids is not None and self.fits(len(ids) + self.conversation.max_new)
        return replace(review, critique=critique, ids=ids if fits else None)

    def check(self, case: Case) -> None:
        """Check before training that revisions are possible.  Raises ValueError: the chat template refuses them."""
        if self.format.template is None:
            return
        words = self.sentences
        try:
            self.format.ids(words.revision_prompt(case, words.praise, words.placebo))
        except ValueError as error:
            raise ValueError(f"chat: a revision needs several turns: {error}; set chat: false") from None

    def fits(self, tokens: int) -> bool:
        """Whether a row of `tokens` tokens fits the context."""
        return self.context is None or tokens <= self.context

    def encoded(self, prompt: PromptText) -> list[int] | None:
        """Encode a prompt that quotes a reply; None if the reply spells a special token."""
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
        """Make `copies` revisions of each reply that has a critique. Revisions of one reply are next to each other."""
        criticised = [review for review in reviews if review.ids is not None]
        if not criticised:
            return []
        seeds = rng.integers(2**62, size=(len(criticised) * copies, 1))
        of = [review for review in criticised for _ in range(copies)]
        if isinstance(reviser, Reviser):
            return self._of_texts(acting, reviser, of, seeds[:, 0].tolist())
        prompts = [Prompt(review.episode.prompt.case, cast(list[int], review.ids)) for review in criticised]
        episodes = self.conversation.play(reviser, prompts, seeds, copies, deterministic)
        return [
            Revision(review, replace(episode, prompt=review.episode.prompt))
            for review, episode in zip(of, episodes, strict=True)
        ]

    def _of_texts(
        self, acting: Acting, reviser: Reviser, reviews: Sequence[Review], seeds: Sequence[int]
    ) -> list[Revision]:
        """Revisions from a reviser that writes text; missing ones and those that cannot be encoded are left out."""
        cases = [review.episode.prompt.case for review in reviews]
        replies, critiques = [review.reply for review in reviews], [review.critique or "" for review in reviews]
        texts = reviser.revisions(cases, replies, critiques, seeds, acting)
        episodes = [self._episode(review, text) for review, text in zip(reviews, texts, strict=True)]
        pairs = zip(reviews, episodes, strict=True)
        return [Revision(review, episode) for review, episode in pairs if episode is not None]

    def _episode(self, review: Review, text: Written | None) -> Episode | None:
        """Turn the text of a revision into an episode, with log-probabilities +∞, as for an expert that is certain."""
        if text is None:
            return None
        tokenizer, prompt = self.conversation.tokenizer, review.episode.prompt
        try:
            tokens = tokenizer.encode_reply(text.text) + [tokenizer.eos] * text.finished
        except ValueError:
            return None
        if not tokens:
            return None
        outcome = self.conversation.task.begin(prompt.case).reply(text.text, text.finished)
        return Episode(prompt, [Turn(tokens, [math.inf] * len(tokens), text.finished, text.text, outcome)])

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
        """Revise each episode once. An episode without a critique, or without room for a revision, stays unchanged."""
        reviews = self.reviewed(episodes, range(len(episodes)), critiques, rng, words=words)
        after = list(episodes)
        for revision in self.revisions(acting, reviser, reviews, rng, deterministic=deterministic):
            after[revision.review.of] = revision.episode
        return after


def _of_another_prompt(prompts: Mapping[int, str], rng: np.random.Generator) -> dict[int, int]:
    """Pair each index with an index of a different prompt. Each is used once, if no prompt has more than half of them.

    The indices are ordered by prompt, in random order, and shifted by the size of the largest prompt.
    """
    lots = dict(zip(dict.fromkeys(prompts.values()), rng.permutation(len(set(prompts.values()))), strict=True))
    order = sorted(rng.permutation(list(prompts)).tolist(), key=lambda place: lots[prompts[place]])
    step = max(Counter(prompts.values()).values(), default=0)
    return dict(zip(order, order[step:] + order[:step], strict=True))
