"""Served model as a feedback provider that answers a list of questions about each judgement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from data_modules.feedback.providers.answer import Unanswered
from data_modules.feedback.providers.client import Client, Stopped, waited_for
from data_modules.feedback.providers.endpoint import Endpoint
from data_modules.feedback.providers.facts import facts_of, refuse_missing_facts
from data_modules.feedback.providers.provider import Account, with_answers
from data_modules.feedback.providers.questions import Note, Question
from data_modules.judgements.schema import Judgement


class ModelJudge:
    """Feedback from a served model. The questions determine which: scores, critiques, rankings or expected responses.

    Different judgements are processed concurrently; the questions about one judgement run in sequence. An answer in a
    wrong form is requested once more, and if that fails it is left out and listed. All answers are in the endpoint's
    cache, so after an interruption or a spent budget the same command continues the work.

    Args:
        endpoint: the served model, with a budget.
        questions: the questions to ask about each judgement.

    Raises:
        ValueError: there are no questions; or in `complete`, a judgement lacks a fact that a template needs.
    """

    def __init__(self, endpoint: Endpoint, questions: list[Question]) -> None:
        if not questions:
            raise ValueError("questions: the list is empty; add at least one question")
        self.endpoint, self.questions = endpoint, questions
        self.gives: tuple[str, ...] = tuple(dict.fromkeys(name for question in questions for name in question.gives))

    def complete(self, judgements: Sequence[Judgement], tick: Callable[[], object]) -> tuple[list[Judgement], Account]:
        places = tuple(dict.fromkeys(place for question in self.questions for place in question.facts))
        names = [judgement.where or f"judgement {number + 1}" for number, judgement in enumerate(judgements)]
        cases = [
            (f"{name}: meta.facts", facts_of(judgement)) for name, judgement in zip(names, judgements, strict=True)
        ]
        refuse_missing_facts(places, cases)
        return ask_all(self.endpoint, judgements, self._completed, tick)

    async def _completed(self, client: Client, judgement: Judgement, note: Note) -> Judgement:
        for question in self.questions:
            try:
                judgement = with_answers(judgement, self.endpoint.model, **await question.ask(client, judgement, note))
            except Unanswered as error:
                note(error)
        return judgement


def ask_all(
    endpoint: Endpoint,
    judgements: Sequence[Judgement],
    complete: Callable[[Client, Judgement, Note], Awaitable[Judgement]],
    tick: Callable[[], object],
) -> tuple[list[Judgement], Account]:
    """Run `Provider.complete` concurrently with a served model. Ctrl-C stops the work as a spent budget does."""
    client, account = Client(endpoint), Account()
    completed = list(judgements)

    async def complete_one(place: int) -> None:
        judgement = judgements[place]

        def note(error: Unanswered) -> None:
            if not isinstance(error, Stopped):
                account.left_out.append(f"{judgement.where or f'judgement {place + 1}'}: {error}")

        completed[place] = await complete(client, judgement, note)
        tick()

    async def every() -> None:
        async with client, asyncio.TaskGroup() as group:
            for place in range(len(judgements)):
                group.create_task(complete_one(place))

    try:
        waited_for(every())
    except ExceptionGroup as errors:  # the first exception has cancelled the other tasks
        raise errors.exceptions[0] from None
    except KeyboardInterrupt:
        account.interrupted = True
    account.counters, account.stopped = client.counters, client.budget.stopped
    return completed, account
