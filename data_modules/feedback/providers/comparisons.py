"""Questions about several replies to one prompt: pairwise preference, and listwise ranking."""

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
from data_modules.feedback.providers.questions import Note, ask_and_read, text_of, together
from data_modules.judgements.ranking import format_ranking, letter, parse_ranking, ranks_of_scores
from data_modules.judgements.schema import Judgement
from lightning_nlf.numbers import Count, NonNegative, Seed, Size

VOTE_TOKENS = 8
SHOWN = 300  # maximum number of characters of an answer in a message


@dataclass(frozen=True)
class Example:
    """Few-shot example of a comparison."""

    prompt: str
    response_1: str
    response_2: str
    preferred: int  # 1 or 2
    facts: dict[str, Any] = field(default_factory=dict)  # for the fact places of the comparison template

    def __post_init__(self) -> None:
        if self.preferred not in (1, 2):
            raise ValueError(f"examples: preferred: got {self.preferred}, must be 1 or 2")


class PreferenceQuestion:
    """Pairwise preferences of a model, averaged over both orders to cancel its position bias.

    p = ½ (p(1 | A, B) + p(2 | B, A)), each a softmax over the log-probabilities of "1" and "2": § 2.1 of
    https://arxiv.org/abs/2309.00267. For two responses p is the `preference`, and `ranking` is the order that follows
    from p. For more responses only `ranking` is given: responses are ordered by the mean of p over all pairs that
    include the response.

    Args:
        preamble: the instruction before the examples.
        comparison: template of one comparison, with the places `{prompt}`, `{response_1}` and `{response_2}`. The
            template ends where the model continues with 1 or 2. All other places are facts, see `ScoreQuestion`.
        examples: few-shot examples with their answers.
        principles: path of a file with principles (`conf/providers/principles.yaml`). The preamble of each prompt is
            then the `preference` text of a randomly drawn principle.
        votes: number of sampled answers per order, for servers that give no log-probabilities; p is then the share of
            votes.
        temperature: sampling temperature of the votes.
        alternatives: number of most probable tokens whose log-probabilities are requested; most servers allow at most
            20.
        ties: maximum difference in mean p between responses that are tied in the ranking.
        seed: seed for sampling the votes and for drawing the principles.
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
        refuse_missing_facts(
            self.facts, [(f"examples: {i + 1}", example.facts) for i, example in enumerate(examples or [])]
        )
        for name, value, least in (("votes", votes, 0), ("alternatives", alternatives, 2), ("ties", ties, 0)):
            if value < least:
                raise ValueError(f"{name}: got {value}, must be at least {least}")
        if votes and not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, must be above 0, or all votes would be the same")
        self.comparison, self.examples, self.preambles = comparison, examples or [], [preamble]
        if principles:
            self.preambles = [p.preference for p in read_principles(principles) if p.preference]
        if not self.preambles:
            raise ValueError(f"principles: no principle in {principles} has a preference; add one")
        self.votes, self.temperature, self.alternatives = votes, temperature, alternatives
        self.ties, self.seed = ties, seed

    async def ask(self, client: Client, judgement: Judgement, note: Note) -> dict[str, Any]:
        count = len(judgement.responses)
        incomplete = judgement.ranking is None or (count == 2 and judgement.preference is None)
        if count < 2 or not incomplete:
            return {}
        pairs = list(combinations(range(count), 2))
        # all pairs or none, because a ranking with a missing pair would be biased
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
        """Probability that response i is better than j."""
        ahead, behind = await together(
            self._first(client, self.filled(judgement, i, j)), self._first(client, self.filled(judgement, j, i))
        )
        return (ahead + 1 - behind) / 2

    async def _first(self, client: Client, prompt: str) -> float:
        """Probability that the model answers 1."""
        if not self.votes:
            return await ask_and_read(client, _first_of_two, prompt, 1, alternatives=self.alternatives)
        answers = await together(*(self._vote(client, prompt, self.seed + i) for i in range(self.votes)))
        votes = [answer for answer in answers if answer is not None]
        if not votes:
            raise Malformed(f"preference: none of the {self.votes} answers is 1 or 2")
        return sum(votes) / len(votes)

    async def _vote(self, client: Client, prompt: str, seed: int) -> bool | None:
        """Whether a sampled answer votes for the first response; None if the answer is neither 1 nor 2."""
        try:
            return await ask_and_read(client, _vote, prompt, VOTE_TOKENS, self.temperature, seed)
        except Malformed:
            return None

    def filled(self, judgement: Judgement, i: int, j: int) -> str:
        """The full text of the question, with response i first and response j second."""
        examples = [
            f"{prompts.EXAMPLE_BEGINS}\n\n"
            + self._compared(e.prompt, e.response_1, e.response_2, e.facts)
            + str(e.preferred)
            for e in self.examples
        ]
        first, second = (judgement.responses[k].strip() for k in (i, j))
        last = self._compared(text_of(judgement), first, second, facts_of(judgement))
        preamble = Random(f"{self.seed} {text_of(judgement)}").choice(self.preambles)
        return "\n\n".join([preamble, *examples, *([prompts.EXAMPLES_END] if examples else []), last])

    def _compared(self, prompt: str, first: str, second: str, facts: Facts) -> str:
        places = as_texts(self.facts, facts) | {"prompt": prompt}
        return self.comparison.format(**places, response_1=first, response_2=second)


def _first_of_two(answer: Answer) -> float:
    return softmax(label_log_probs(answer, ("1", "2")))[0]


def _vote(answer: Answer) -> bool:
    """Whether the answer prefers the first response."""
    label = re.fullmatch(r"([12])\.?", answer.text.strip())
    if label is None:
        raise Malformed(f"preference: {excerpt(answer.text)} is neither 1 nor 2")
    return label[1] == "1"


class ListwiseQuestion:
    """Listwise ranking of all responses by a model, with ranks averaged over two opposite orders of the responses.

    Args:
        template: text with the places `{prompt}` and `{responses}` (filled with `A - …`, `B - …`), and optionally
            facts.
        max_tokens: maximum number of tokens in an answer.
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
        rankings = await together(*(self._ranks(client, judgement, order) for order in orders))
        return {"ranking": format_ranking(ranks_of_scores([-float(a + b) for a, b in zip(*rankings, strict=True)]))}

    async def _ranks(self, client: Client, judgement: Judgement, order: list[int]) -> list[int]:
        """Rank of each response, with response `order[0]` presented as A."""
        responses = "\n\n".join(f"{letter(place)} - {judgement.responses[i].strip()}" for place, i in enumerate(order))

        def read(answer: Answer) -> tuple[int, ...]:
            try:
                return parse_ranking(answer.text.strip().removesuffix("."), len(order))
            except ValueError as error:
                raise Malformed(f"ranking: {str(error)[:SHOWN]}") from None

        places = as_texts(self.facts, facts_of(judgement)) | {"prompt": text_of(judgement), "responses": responses}
        ranks = await ask_and_read(client, read, self.template.format(**places), self.max_tokens)
        return [ranks[order.index(i)] for i in range(len(order))]
