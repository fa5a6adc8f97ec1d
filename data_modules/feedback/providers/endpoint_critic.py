"""Served model as critic or reviser during training."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from warnings import warn

from data_modules.feedback.providers import prompts
from data_modules.feedback.providers.answer import Unanswered
from data_modules.feedback.providers.client import Client, waited_for
from data_modules.feedback.providers.endpoint import Endpoint
from data_modules.feedback.providers.facts import as_texts, fact_places, refuse_missing_facts
from data_modules.feedback.providers.judge_reward import TOLERATED
from data_modules.feedback.providers.questions import CritiqueQuestion, ask_and_read, together, words
from data_modules.text.critics import UNHEARD, Acting
from data_modules.text.environment import Case, Revisable
from data_modules.text.prompts import PromptFormat
from data_modules.text.writer import Written
from lightning_nlf.batch import TeacherStopped
from lightning_nlf.numbers import NonNegative, Size

T = TypeVar("T")


class EndpointCritic:
    """Critic and reviser behind an endpoint, with concurrent requests, a cache and a budget.

    `counters` are the counters of `Client`, including evaluations: `calls`, `cached`, `retries`, `prompt_tokens` and
    `completion_tokens`. The same reply to the same prompt costs only once. A reply about which the model gives no
    answer, even after a second try, is neither criticised nor revised; a warning gives the number of such replies.

    Args:
        endpoint: the served model, with a budget for each process.
        question: the question that asks for a critique.
        revision: template that asks for a revision, with the places `{prompt}`, `{response}` and `{critique}`, and
            optionally facts of a case.
        max_tokens: maximum number of tokens in a revision.
        temperature: sampling temperature of critiques and revisions. At 0 all revisions of a reply are the same.

    Raises:
        ValueError: a template lacks a place; in `check`, a case lacks a fact that a template needs.
        TeacherStopped: the budget is spent, no server answers, or more than a tenth of the questions have no answer.
            The answers so far are in the cache, so resuming the run from its last checkpoint costs nothing extra.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        question: CritiqueQuestion | None = None,
        revision: str = prompts.REVISION,
        max_tokens: Size = 512,
        temperature: NonNegative = 0.0,
    ) -> None:
        self.facts = fact_places("revision", revision, ("prompt", "response", "critique"))
        self.client = Client(endpoint)
        self.question = CritiqueQuestion() if question is None else question
        self.revision, self.max_tokens, self.temperature = revision, max_tokens, temperature

    @property
    def counters(self) -> dict[str, int]:
        """The number of calls and tokens so far, by name."""
        return self.client.counters

    def check(self, name: str, cases: Sequence[Case], words: Revisable, policy: PromptFormat) -> None:
        """See `Checked.check`.  Raises ValueError: a case lacks a fact that a template needs."""
        facts = self.question.facts if name == "critic" else self.facts
        refuse_missing_facts(facts, [(f"{name}: case {case.id!r}", case.facts) for case in cases])

    def critiques(
        self, cases: Sequence[Case], replies: Sequence[str], seeds: Sequence[int], acting: Acting
    ) -> list[str | None]:
        """See `Critic.critiques`."""

        def ask_one(case: Case, reply: str, seed: int) -> Awaitable[str | None]:
            how = (self.temperature, self._seed(seed))
            return self.question.critique(self.client, case.text.strip(), case.facts, reply, *how)

        return self._answers("critic", ask_one, list(zip(cases, replies, seeds, strict=True)), UNHEARD)

    def revisions(
        self,
        cases: Sequence[Case],
        replies: Sequence[str],
        critiques: Sequence[str],
        seeds: Sequence[int],
        acting: Acting,
    ) -> list[Written | None]:
        """See `Reviser.revisions`."""

        async def ask_one(case: Case, reply: str, critique: str, seed: int) -> Written | None:
            places = {"prompt": case.text.strip(), "response": reply.strip(), "critique": critique}
            filled = self.revision.format(**as_texts(self.facts, case.facts), **places)
            text = await ask_and_read(self.client, words, filled, self.max_tokens, self.temperature, self._seed(seed))
            return Written(text)

        return self._answers("reviser", ask_one, list(zip(cases, replies, critiques, seeds, strict=True)), None)

    def _seed(self, seed: int) -> int:
        """The seed of a request. For greedy answers always 0, so that each is requested only once."""
        return seed % 2**31 if self.temperature else 0

    def _answers(
        self, knob: str, ask_one: Callable[..., Awaitable[T]], questions: Sequence[tuple[object, ...]], none: T
    ) -> list[T]:
        """The answer to each question, or `none` without an answer.  Raises TeacherStopped: see the class."""
        faults: list[Unanswered] = []

        async def attempt(question: tuple[object, ...]) -> T:
            try:
                return await ask_one(*question)
            except Unanswered as error:
                faults.append(error)
                return none

        async def every() -> list[T]:
            async with self.client:
                return await together(*map(attempt, questions))

        answers = waited_for(every())
        stopped = self.client.budget.stopped
        if stopped or len(faults) > TOLERATED * len(questions):
            count = f"{len(faults)} of {len(questions)} questions have no answer"
            raise TeacherStopped(f"{knob}: {stopped or f'{count}: {faults[-1]}'}")
        if faults:
            warn(f"{knob}: {len(faults)} of {len(questions)} questions have no answer: {faults[-1]}", stacklevel=2)
        return answers
