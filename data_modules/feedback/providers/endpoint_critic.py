"""A model behind an endpoint as critic or reviser while the policy learns."""

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
from data_modules.feedback.providers.questions import CritiqueQuestion, asked, together, words
from data_modules.text.critics import UNHEARD, Acting
from data_modules.text.environment import Case, Revisable
from data_modules.text.prompts import PromptFormat
from data_modules.text.writer import Written
from lightning_nlf.batch import TeacherStopped
from lightning_nlf.numbers import NonNegative, Size

T = TypeVar("T")


class EndpointCritic:
    """Asks a served model what is wrong with replies, and for better ones: side by side, cached, within the budget.

    `counters` are those of `Client`, evaluations included: `calls`, `cached`, `retries`, `prompt_tokens`,
    `completion_tokens`. The same reply to the same prompt is paid for once. A reply about which it says nothing, after
    a second try, is neither criticised nor revised, and a warning tells how many there were.

    Args:
        endpoint: where the model is, and what may be spent, by each process.
        question: what a critique is asked with.
        revision: what a revision is asked with: a template with the places `{prompt}`, `{response}` and `{critique}`,
            and maybe facts of a case.
        max_tokens: of a revision.
        temperature: of both; at 0 several revisions of one reply are the same.

    Raises:
        ValueError: a template without its places; in `check`, a case without a fact that there is a place for.
        TeacherStopped: where it is asked, and the budget is spent, nobody answers, or more than a tenth have no answer.
            What was answered is in the cache, so a run goes on from its last checkpoint.
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
        """What it cost so far."""
        return self.client.counters

    def check(self, name: str, cases: Sequence[Case], words: Revisable, policy: PromptFormat) -> None:
        """`Checked.check`.  Raises ValueError: a case without a fact that the template has a place for."""
        facts = self.question.facts if name == "critic" else self.facts
        refuse_missing_facts(facts, [(f"{name}: case {case.id!r}", case.facts) for case in cases])

    def critiques(
        self, cases: Sequence[Case], replies: Sequence[str], seeds: Sequence[int], acting: Acting
    ) -> list[str | None]:
        """`Critic.critiques`."""

        def one(case: Case, reply: str, seed: int) -> Awaitable[str | None]:
            how = (self.temperature, self._seed(seed))
            return self.question.critique(self.client, case.text.strip(), case.facts, reply, *how)

        return self._answers("critic", one, list(zip(cases, replies, seeds, strict=True)), UNHEARD)

    def revisions(
        self,
        cases: Sequence[Case],
        replies: Sequence[str],
        critiques: Sequence[str],
        seeds: Sequence[int],
        acting: Acting,
    ) -> list[Written | None]:
        """`Reviser.revisions`."""

        async def one(case: Case, reply: str, critique: str, seed: int) -> Written | None:
            places = {"prompt": case.text.strip(), "response": reply.strip(), "critique": critique}
            filled = self.revision.format(**as_texts(self.facts, case.facts), **places)
            text = await asked(self.client, words, filled, self.max_tokens, self.temperature, self._seed(seed))
            return Written(text)

        return self._answers("reviser", one, list(zip(cases, replies, critiques, seeds, strict=True)), None)

    def _seed(self, seed: int) -> int:
        """The likeliest answer is the same for every seed, and is asked for once."""
        return seed % 2**31 if self.temperature else 0

    def _answers(
        self, knob: str, one: Callable[..., Awaitable[T]], questions: Sequence[tuple[object, ...]], none: T
    ) -> list[T]:
        """The answer to each question, `none` where there is none.  Raises TeacherStopped: as the class says."""
        faults: list[Unanswered] = []

        async def attempt(question: tuple[object, ...]) -> T:
            try:
                return await one(*question)
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
