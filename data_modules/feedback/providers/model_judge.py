"""A model behind an endpoint, asked whatever is wanted of each judgement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from data_modules.feedback.providers.answer import Unanswered
from data_modules.feedback.providers.client import Client, Stopped, waited_for
from data_modules.feedback.providers.endpoint import Endpoint
from data_modules.feedback.providers.facts import facts_of, refuse_missing_facts
from data_modules.feedback.providers.provider import Account, said
from data_modules.feedback.providers.questions import Note, Question
from data_modules.judgements.schema import Judgement


class ModelJudge:
    """Asks a model the questions, one after the other of a judgement and side by side of different ones.

    An answer in another form than was asked for is asked for once more, and then left out and listed. Whatever was
    answered is in the endpoint's cache: where a run was stopped, by its budget or by force, the same command goes on.

    Args:
        endpoint: where the model is, and what may be spent.
        questions: what it is asked.

    Raises:
        ValueError: no question; in `complete` a judgement without a fact that a template has a place for.
    """

    def __init__(self, endpoint: Endpoint, questions: list[Question]) -> None:
        if not questions:
            raise ValueError("questions: there is none to ask")
        self.endpoint, self.questions = endpoint, questions
        self.gives: tuple[str, ...] = tuple(dict.fromkeys(name for each in questions for name in each.gives))

    def complete(self, judgements: Sequence[Judgement], tick: Callable[[], object]) -> tuple[list[Judgement], Account]:
        places = tuple(dict.fromkeys(place for question in self.questions for place in question.facts))
        named = [each.where or f"judgement {number + 1}" for number, each in enumerate(judgements)]
        cases = [(f"{name}: meta.facts", facts_of(each)) for name, each in zip(named, judgements, strict=True)]
        refuse_missing_facts(places, cases)
        return ask_all(self.endpoint, judgements, self._completed, tick)

    async def _completed(self, client: Client, judgement: Judgement, note: Note) -> Judgement:
        for question in self.questions:
            try:
                judgement = said(judgement, self.endpoint.model, **await question.ask(client, judgement, note))
            except Unanswered as error:
                note(error)
        return judgement


def ask_all(
    endpoint: Endpoint,
    judgements: Sequence[Judgement],
    complete: Callable[[Client, Judgement, Note], Awaitable[Judgement]],
    tick: Callable[[], object],
) -> tuple[list[Judgement], Account]:
    """`Provider.complete` with a model: all judgements side by side. Ctrl-C stops it like a spent budget."""
    client, account = Client(endpoint), Account()
    done = list(judgements)

    async def one(place: int) -> None:
        judgement = judgements[place]

        def note(error: Unanswered) -> None:
            if not isinstance(error, Stopped):
                account.left_out.append(f"{judgement.where or f'judgement {place + 1}'}: {error}")

        done[place] = await complete(client, judgement, note)
        tick()

    async def every() -> None:
        async with client, asyncio.TaskGroup() as group:
            for place in range(len(judgements)):
                group.create_task(one(place))

    try:
        waited_for(every())
    except ExceptionGroup as errors:  # the first has stopped the others
        raise errors.exceptions[0] from None
    except KeyboardInterrupt:
        account.interrupted = True
    account.counters, account.stopped = client.counters, client.budget.stopped
    return done, account
