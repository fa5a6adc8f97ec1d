"""What a model is asked of several replies to one prompt: which of two is better, or the order of all."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import combinations
from random import Random
from typing import Any

from data_modules.feedback.providers import prompts
from data_modules.feedback.providers.answer import Answer, Malformed, excerpt, label_log_probs, softmax
from data_modules.feedback.providers.client import Client
from data_modules.feedback.providers.constitution import read_principles
from data_modules.feedback.providers.facts import Facts, as_texts, fact_places, facts_of, refuse_missing_facts
from data_modules.feedback.providers.questions import Note, asked, text_of, together
from data_modules.judgements.ranking import format_ranking, letter, parse_ranking, ranks_of_scores
from data_modules.judgements.schema import Judgement
from lightning_nlf.numbers import Count, NonNegative, Seed, Size

VOTE_TOKENS = 8
SHOWN = 300  # characters of a message about an order


@dataclass(frozen=True)
class Example:
    """A comparison that is shown before the one that is asked for."""

    prompt: str
    response_1: str
    response_2: str
    preferred: int  # 1 or 2
    facts: dict[str, Any] = field(default_factory=dict)  # for further places of the comparison

    def __post_init__(self) -> None:
        if self.preferred not in (1, 2):
            raise ValueError(f"examples: preferred is {self.preferred}, must be 1 or 2")


class PreferenceQuestion:
    """How likely each response is the better of each pair, in both orders, as a model favours a place.

    p = ½ (p(1 | A, B) + p(2 | B, A)), each a softmax over the log-probabilities of "1" and "2": § 2.1 of
    https://arxiv.org/abs/2309.00267. Of two responses it is the `preference`, and the `ranking` says the same without
    the doubt; of more there is a `ranking` by the mean of p over the others.

    Args:
        preamble: what is asked, before the examples.
        comparison: one comparison, with the places `{prompt}`, `{response_1}` and `{response_2}`; its end leads to the
            1 or 2. Further places are facts, as of `ScoreQuestion`.
        examples: comparisons with their answers.
        principles: a file of them (`conf/feedback/principles.yaml`): the preamble of each prompt is the `preference` of
            one that is drawn.
        votes: for servers without log-probabilities: so many sampled answers an order, and p is the share of them.
        temperature: of votes.
        alternatives: tokens whose log-probabilities are asked for; most servers give 20 at most.
        ties: means of p no further apart are a tie in the ranking.
        seed: of votes and of what is drawn.
    """

    gives: tuple[str, ...] = ("preference", "ranking")

    def __init__(
        self,
        preamble: str = prompts.PREAMBLE,
        comparison: str = prompts.COMPARISON,
        examples: list[Example] | None = None,
        principles: str | None = None,
        votes: Count = 0,
        temperature: NonNegative = 1.0,
        alternatives: Size = 20,
        ties: NonNegative = 0.0,
        seed: Seed = 0,
    ) -> None:
        self.facts = fact_places("comparison", comparison, ("prompt", "response_1", "response_2"))
        refuse_missing_facts(self.facts, [(f"examples: {i + 1}", each.facts) for i, each in enumerate(examples or [])])
        for name, value, least in (("votes", votes, 0), ("alternatives", alternatives, 2), ("ties", ties, 0)):
            if value < least:
                raise ValueError(f"{name}: got {value}, must be at least {least}")
        if votes and not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, and votes would all be the same; it must be above 0")
        self.comparison, self.examples, self.preambles = comparison, examples or [], [preamble]
        if principles:
            self.preambles = [p.preference for p in read_principles(principles) if p.preference]
        if not self.preambles:
            raise ValueError(f"principles: none in {principles} has a preference")
        self.votes, self.temperature, self.alternatives = votes, temperature, alternatives
        self.ties, self.seed = ties, seed

    async def ask(self, client: Client, judgement: Judgement, note: Note) -> dict[str, Any]:
        count = len(judgement.responses)
        wanted = judgement.ranking is None or (count == 2 and judgement.preference is None)
        if count < 2 or not wanted:
            return {}
        pairs = list(combinations(range(count), 2))
        # all or none: a ranking that leaves a pair out would favour somebody
        preferences = await together(*(self._preference(client, judgement, i, j) for i, j in pairs))
        wins = [0.0] * count
        for (i, j), p in zip(pairs, preferences, strict=True):
            wins[i] += p / (count - 1)
            wins[j] += (1 - p) / (count - 1)
        ranking = format_ranking(ranks_of_scores(wins, self.ties))
        return {
            "ranking": ranking if judgement.ranking is None else None,
            "preference": preferences[0] if count == 2 and judgement.preference is None else None,
        }

    async def _preference(self, client: Client, judgement: Judgement, i: int, j: int) -> float:
        """The probability that response i is better than j."""
        ahead, behind = await together(
            self._first(client, self.filled(judgement, i, j)), self._first(client, self.filled(judgement, j, i))
        )
        return (ahead + 1 - behind) / 2

    async def _first(self, client: Client, prompt: str) -> float:
        """The probability of the answer 1."""
        if not self.votes:
            return await asked(client, _first_of_two, prompt, 1, alternatives=self.alternatives)
        said = await together(*(self._vote(client, prompt, self.seed + i) for i in range(self.votes)))
        votes = [each for each in said if each is not None]
        if not votes:
            raise Malformed(f"preference: none of {self.votes} answers is 1 or 2")
        return sum(votes) / len(votes)

    async def _vote(self, client: Client, prompt: str, seed: int) -> bool | None:
        """None of one that is no vote."""
        try:
            return await asked(client, _vote, prompt, VOTE_TOKENS, self.temperature, seed)
        except Malformed:
            return None

    def filled(self, judgement: Judgement, i: int, j: int) -> str:
        """The whole question, with response i in the first place."""
        shown = [
            f"{prompts.EXAMPLE_BEGINS}\n\n"
            + self._compared(e.prompt, e.response_1, e.response_2, e.facts)
            + str(e.preferred)
            for e in self.examples
        ]
        first, second = (judgement.responses[k].strip() for k in (i, j))
        last = self._compared(text_of(judgement), first, second, facts_of(judgement))
        preamble = Random(f"{self.seed} {text_of(judgement)}").choice(self.preambles)
        return "\n\n".join([preamble, *shown, *([prompts.EXAMPLES_END] if shown else []), last])

    def _compared(self, prompt: str, first: str, second: str, facts: Facts) -> str:
        places = as_texts(self.facts, facts) | {"prompt": prompt}
        return self.comparison.format(**places, response_1=first, response_2=second)


def _first_of_two(answer: Answer) -> float:
    return softmax(label_log_probs(answer, ("1", "2")))[0]


def _vote(answer: Answer) -> bool:
    """Whether it is the first."""
    label = re.fullmatch(r"([12])\.?", answer.text.strip())
    if label is None:
        raise Malformed(f"preference: {excerpt(answer.text)} is neither 1 nor 2")
    return label[1] == "1"


class ListwiseQuestion:
    """The order of all responses in one answer; asked in their order and in the opposite one, and the ranks averaged.

    Args:
        template: with the places `{prompt}` and `{responses}`, which come as `A - …`, `B - …`, and maybe facts.
        max_tokens: of an answer.
    """

    gives: tuple[str, ...] = ("ranking",)

    def __init__(self, template: str = prompts.RANKING, max_tokens: Size = 64) -> None:
        self.facts = fact_places("template", template, ("prompt", "responses"))
        self.template, self.max_tokens = template, max_tokens

    async def ask(self, client: Client, judgement: Judgement, note: Note) -> dict[str, Any]:
        count = len(judgement.responses)
        if count < 2 or judgement.ranking is not None:
            return {}
        orders = [list(range(count)), list(range(count))[::-1]]
        both = await together(*(self._ranks(client, judgement, order) for order in orders))
        return {"ranking": format_ranking(ranks_of_scores([-float(a + b) for a, b in zip(*both, strict=True)]))}

    async def _ranks(self, client: Client, judgement: Judgement, order: list[int]) -> list[int]:
        """The rank of each response, asked with response `order[0]` as A."""
        shown = "\n\n".join(f"{letter(place)} - {judgement.responses[i].strip()}" for place, i in enumerate(order))

        def read(answer: Answer) -> tuple[int, ...]:
            try:
                return parse_ranking(answer.text.strip().removesuffix("."), len(order))
            except ValueError as error:
                raise Malformed(f"ranking: {str(error)[:SHOWN]}") from None

        places = as_texts(self.facts, facts_of(judgement)) | {"prompt": text_of(judgement), "responses": shown}
        ranks = await asked(client, read, self.template.format(**places), self.max_tokens)
        return [ranks[order.index(i)] for i in range(len(order))]
