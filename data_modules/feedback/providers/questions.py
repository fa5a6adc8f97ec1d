"""What a model is asked of one reply: a score, a critique, the expected response."""

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

AGAIN = 1_000_003  # added to the seed of a question that is asked again
SCORE_TOKENS = 8
T = TypeVar("T")
Amount = TypeVar("Amount", float, Tensor)
Note = Callable[[Unanswered], None]  # told of what is left out


class Question(Protocol):
    """What is asked of a judgement."""

    gives: tuple[str, ...]
    facts: tuple[str, ...]  # the places of its template that are facts of a case

    async def ask(self, client: Client, judgement: Judgement, note: Note) -> dict[str, Any]:
        """Fields of the judgement, each None where it stays as it was.

        Raises:
            Unanswered: nothing of it was answered; `note` is told of what is left out of a part.
        """
        ...


def text_of(judgement: Judgement) -> str:
    """The prompt as text; of a chat of several messages who says what."""
    return readable(judgement.prompt).strip()


async def asked(
    client: Client,
    read: Callable[[Answer], T],
    prompt: str,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    alternatives: int = 0,
) -> T:
    """What `read` makes of the answer. One that it cannot read is asked for once more, with another seed.

    Raises:
        Unanswered: there is no answer, or a second one that cannot be read.
        ValueError: the server gives no log-probabilities, to this question or any other.
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
    """What all of them say, side by side. All are waited for, so that nothing that was paid for is lost.

    Raises the first of their exceptions.
    """
    found = await asyncio.gather(*asking, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return [each for each in found if not isinstance(each, BaseException)]


async def of_each(judgement: Judgement, name: Any, one: Callable[[str], Any], note: Note) -> tuple[Any, ...] | None:
    """The field `name`: what `one(response)` gives for each response that has none yet."""

    async def attempt(i: int) -> Any:
        if judgement.of(name, i) is not None:
            return None
        try:
            return await one(judgement.responses[i])
        except Unanswered as error:
            note(error)
            return None

    found = await together(*(attempt(i) for i in range(len(judgement.responses))))
    return merged(getattr(judgement, name), found)


class ScoreQuestion:
    """A number for each response, written on the scale 0 to 1.

    Args:
        low, high: the numbers that the model may say.
        expectation: the mean over the likeliest first tokens that are such a number, instead of the one said
            (§ 4 of https://arxiv.org/abs/2309.00267). Whole numbers only; see `expected_label`.
        alternatives: how many tokens that is; most servers give 20 at most.
        template: with the places `{prompt}`, `{response}`, `{low}` and `{high}`. Any other, such as `{reference}`, is
            a fact of the case, for this and all questions: of `meta.facts` in a file, of `Case.facts` in training.
        scale: what `low` and `high` become.

    Raises:
        ValueError: numbers that do not go upwards, or a template without its places.
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
            raise ValueError(f"low, high: got {low} and {high}, must go upwards")
        if not scale[0] < scale[1]:
            raise ValueError(f"scale: got {scale[0]:g} to {scale[1]:g}, must go upwards")
        self.facts = fact_places("template", template, ("prompt", "response"), ("low", "high"))
        self.low, self.high, self.expectation, self.alternatives = low, high, expectation, alternatives
        self.template, self.scale = template, scale

    async def ask(self, client: Client, judgement: Judgement, note: Note) -> dict[str, Any]:
        prompt = text_of(judgement)
        facts = facts_of(judgement)
        return {"score": await of_each(judgement, "score", lambda text: self.score(client, prompt, text, facts), note)}

    async def score(self, client: Client, prompt: str, response: str, facts: Facts) -> float:
        """On the scale.  Raises Unanswered."""
        filled = self.filled(prompt, response, facts)
        if self.expectation:
            tokens = max(len(str(x)) for x in (self.low, self.high))
            labels = range(self.low, self.high + 1)
            read = partial(expected_label, labels=labels)
            return self.on_scale(await asked(client, read, filled, tokens, alternatives=self.alternatives))
        return self.on_scale(await asked(client, self._number, filled, SCORE_TOKENS))

    def filled(self, prompt: str, response: str, facts: Facts) -> str:
        """The whole question."""
        places = as_texts(self.facts, facts) | {"prompt": prompt, "response": response.strip()}
        return self.template.format(**places, low=self.low, high=self.high)

    def on_scale(self, number: Amount) -> Amount:
        """A number, or a tensor of them, from `low` to `high`, on the scale."""
        return self.scale[0] + (number - self.low) / (self.high - self.low) * (self.scale[1] - self.scale[0])

    def _number(self, answer: Answer) -> float:
        """Nothing but a number on the scale; a full stop behind it is forgiven."""
        number = re.fullmatch(r"(-?\d+(?:\.\d+)?)\.?", answer.text.strip())
        if number is None or not self.low <= float(number[1]) <= self.high:
            raise Malformed(f"score: {excerpt(answer.text)} is no number from {self.low} to {self.high}")
        return float(number[1])


class CritiqueQuestion:
    """What is wrong with each response, in words; none where the model says NOTHING.

    Args:
        template: with the places `{prompt}` and `{response}`, and maybe facts.
        max_tokens: of a critique.
    """

    gives: tuple[str, ...] = ("critique",)

    def __init__(self, template: str = prompts.CRITIQUE, max_tokens: Size = 256) -> None:
        self.facts = fact_places("template", template, ("prompt", "response"))
        self.template, self.max_tokens = template, max_tokens

    async def ask(self, client: Client, judgement: Judgement, note: Note) -> dict[str, Any]:
        prompt, facts = text_of(judgement), facts_of(judgement)
        one = partial(self.critique, client, prompt, facts)
        return {"critique": await of_each(judgement, "critique", one, note)}

    async def critique(
        self, client: Client, prompt: str, facts: Facts, response: str, temperature: float = 0.0, seed: int = 0
    ) -> str | None:
        """None where nothing is wrong.  Raises Unanswered."""
        places = as_texts(self.facts, facts) | {"prompt": prompt, "response": response.strip()}
        text = await asked(client, words, self.template.format(**places), self.max_tokens, temperature, seed)
        return None if text.strip(".").upper() == "NOTHING" else text


class ExpectedQuestion:
    """What the model itself would have said.

    Args:
        template: with the place `{prompt}`, and maybe `{response}`, the first one, and facts.
        max_tokens: of a response.
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
        return {"expected": await asked(client, words, filled, self.max_tokens)}


def words(answer: Answer) -> str:
    """The text of a whole answer.

    Raises:
        Malformed: it is empty, or was cut off.
    """
    text = answer.text.strip()
    if not text:
        raise Malformed("the answer is empty")
    if answer.cut is not None:
        mend = "; a larger max_tokens of the question leaves room for it" if answer.cut == "length" else ""
        raise Malformed(f"the answer was cut off ({answer.cut}): {excerpt(text)}{mend}")
    return text
