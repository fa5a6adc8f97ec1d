"""Questions to a judge about single replies: score, critique, or expected response."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from torch import Tensor

from data_modules.feedback.providers import prompts
from data_modules.feedback.providers.answer import Answer, Malformed, NoLogProbs, Unanswered, excerpt
from data_modules.feedback.providers.client import Client
from data_modules.feedback.providers.expectation import expected_label
from data_modules.feedback.providers.facts import Facts, as_texts, fact_places, facts_of
from data_modules.feedback.providers.provider import merged
from data_modules.judgements.fields import Scale
from data_modules.judgements.schema import Judgement, readable
from lightning_nlf.numbers import Size, Whole

AGAIN = 1_000_003  # added to the seed when a question is repeated
SCORE_TOKENS = 8
T = TypeVar("T")
Amount = TypeVar("Amount", float, Tensor)
Note = Callable[[Unanswered], None]  # called with the reason for each part that is left out


class Question(Protocol):
    """A question to a served model about a judgement."""

    gives: tuple[str, ...]
    facts: tuple[str, ...]  # places of the template that are filled with facts of a case

    async def ask(self, client: Client, judgement: Judgement, note: Note) -> dict[str, Any]:
        """Ask the question; return new values of the judgement's fields, None for a field that stays unchanged.

        Raises:
            Unanswered: there is no answer at all. If only parts are missing, `note` is called for each missing part.
        """
        ...


def text_of(judgement: Judgement) -> str:
    """The prompt as one text; in a chat with several messages, the role precedes each message."""
    return readable(judgement.prompt).strip()


async def ask_and_read(
    client: Client,
    read: Callable[[Answer], T],
    prompt: str,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    alternatives: int = 0,
) -> T:
    """Ask a question and parse the answer with `read`; if that fails, ask once more with another seed.

    Raises:
        Unanswered: there is no answer, or the second answer cannot be parsed either.
        ValueError: the server has never given log-probabilities.
    """
    first = await client.ask(prompt, max_tokens, temperature, seed, alternatives)
    try:
        return read(first)
    except Malformed:
        second = await client.ask(prompt, max_tokens, temperature, seed + AGAIN, alternatives)
    try:
        return read(second)
    except NoLogProbs as error:
        if client.budget.log_probs:
            raise
        raise ValueError(str(error)) from None


async def together(*asking: Awaitable[T]) -> list[T]:
    """Wait for all concurrent questions, so that no paid answer is lost, and return their results.

    If questions fail, the first exception is raised.
    """
    results = await asyncio.gather(*asking, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


async def of_each(judgement: Judgement, name: Any, ask_one: Callable[[str], Any], note: Note) -> tuple[Any, ...] | None:
    """Complete the field `name`: call `ask_one(response)` for each response without a value."""

    async def attempt(i: int) -> Any:
        if judgement.of(name, i) is not None:
            return None
        try:
            return await ask_one(judgement.responses[i])
        except Unanswered as error:
            note(error)
            return None

    values = await together(*(attempt(i) for i in range(len(judgement.responses))))
    return merged(getattr(judgement, name), values)


class ScoreQuestion:
    """Ask for a score of each response, as a number from `low` to `high` that is mapped to `scale`.

    Args:
        low, high: lowest and highest number that the model may answer.
        expectation: use the mean of the numbers, weighted by token probability, instead of the number in the answer (§
            4 of https://arxiv.org/abs/2309.00267). For whole numbers only; see `expected_label`.
        alternatives: number of most probable tokens whose log-probabilities are requested; most servers allow at most
            20.
        template: text with the places `{prompt}`, `{response}`, `{low}` and `{high}`. In all questions any other place,
            such as `{reference}`, is a fact of the case, from `meta.facts` in a file or from `Case.facts` in training.
        scale: the scores that `low` and `high` are mapped to.

    Raises:
        ValueError: the first value of a range is not lower than the second, or the template lacks a place.
    """

    gives: tuple[str, ...] = ("score",)

    def __init__(
        self,
        low: Whole = 1,
        high: Whole = 10,
        expectation: bool = False,
        alternatives: Size = 20,
        template: str = prompts.SCORE,
        scale: Scale = (0.0, 1.0),
    ) -> None:
        if not low < high:
            raise ValueError(f"low, high: got {low} and {high}, the first must be lower than the second")
        if not scale[0] < scale[1]:
            raise ValueError(f"scale: got {scale[0]:g} to {scale[1]:g}, the first must be lower than the second")
        self.facts = fact_places("template", template, ("prompt", "response"), ("low", "high"))
        self.low, self.high, self.expectation, self.alternatives = low, high, expectation, alternatives
        self.template, self.scale = template, scale

    async def ask(self, client: Client, judgement: Judgement, note: Note) -> dict[str, Any]:
        prompt = text_of(judgement)
        facts = facts_of(judgement)
        return {"score": await of_each(judgement, "score", lambda text: self.score(client, prompt, text, facts), note)}

    async def score(self, client: Client, prompt: str, response: str, facts: Facts) -> float:
        """Ask for the score of one response, on the scale.  Raises Unanswered: there is no usable answer."""
        filled = self.filled(prompt, response, facts)
        if self.expectation:
            tokens = max(len(str(x)) for x in (self.low, self.high))
            labels = range(self.low, self.high + 1)
            read = partial(expected_label, labels=labels)
            return self.on_scale(await ask_and_read(client, read, filled, tokens, alternatives=self.alternatives))
        return self.on_scale(await ask_and_read(client, self._number, filled, SCORE_TOKENS))

    def filled(self, prompt: str, response: str, facts: Facts) -> str:
        """The full text of the question."""
        places = as_texts(self.facts, facts) | {"prompt": prompt, "response": response.strip()}
        return self.template.format(**places, low=self.low, high=self.high)

    def on_scale(self, number: Amount) -> Amount:
        """Map a number from `low` to `high`, or a tensor of such numbers, to the scale."""
        return self.scale[0] + (number - self.low) / (self.high - self.low) * (self.scale[1] - self.scale[0])

    def _number(self, answer: Answer) -> float:
        """The number in an answer. The answer may contain nothing else, except a final full stop."""
        number = re.fullmatch(r"(-?\d+(?:\.\d+)?)\.?", answer.text.strip())
        if number is None or not self.low <= float(number[1]) <= self.high:
            raise Malformed(f"score: {excerpt(answer.text)} is not a number from {self.low} to {self.high}")
        return float(number[1])


class CritiqueQuestion:
    """Ask for a critique of each response. There is no critique if the model answers NOTHING.

    Args:
        template: text with the places `{prompt}` and `{response}`, and optionally facts.
        max_tokens: maximum number of tokens in a critique.
    """

    gives: tuple[str, ...] = ("critique",)

    def __init__(self, template: str = prompts.CRITIQUE, max_tokens: Size = 256) -> None:
        self.facts = fact_places("template", template, ("prompt", "response"))
        self.template, self.max_tokens = template, max_tokens

    async def ask(self, client: Client, judgement: Judgement, note: Note) -> dict[str, Any]:
        prompt, facts = text_of(judgement), facts_of(judgement)
        ask_one = partial(self.critique, client, prompt, facts)
        return {"critique": await of_each(judgement, "critique", ask_one, note)}

    async def critique(
        self, client: Client, prompt: str, facts: Facts, response: str, temperature: float = 0.0, seed: int = 0
    ) -> str | None:
        """Ask for a critique of one response; None if nothing is wrong.  Raises Unanswered: no usable answer."""
        places = as_texts(self.facts, facts) | {"prompt": prompt, "response": response.strip()}
        text = await ask_and_read(client, words, self.template.format(**places), self.max_tokens, temperature, seed)
        return None if text.strip(".").upper() == "NOTHING" else text


class ExpectedQuestion:
    """Ask for the expected response, which is the model's own answer to the prompt.

    Args:
        template: text with the place `{prompt}`, and optionally `{response}` (the first response) and facts.
        max_tokens: maximum number of tokens in a response.
    """

    gives: tuple[str, ...] = ("expected",)

    def __init__(self, template: str = prompts.EXPECTED, max_tokens: Size = 512) -> None:
        self.facts = fact_places("template", template, ("prompt",), ("response",))
        self.template, self.max_tokens = template, max_tokens

    async def ask(self, client: Client, judgement: Judgement, note: Note) -> dict[str, Any]:
        if judgement.expected is not None:
            return {}
        places = as_texts(self.facts, facts_of(judgement)) | {"prompt": text_of(judgement)}
        filled = self.template.format(**places, response=next(iter(judgement.responses), "").strip())
        return {"expected": await ask_and_read(client, words, filled, self.max_tokens)}


def words(answer: Answer) -> str:
    """The text of a complete answer.

    Raises:
        Malformed: the answer is empty or was cut off.
    """
    text = answer.text.strip()
    if not text:
        raise Malformed("the answer is empty")
    if answer.cut is not None:
        remedy = "; raise max_tokens of the question" if answer.cut == "length" else ""
        raise Malformed(f"the answer was cut off ({answer.cut}): {excerpt(text)}{remedy}")
    return text
