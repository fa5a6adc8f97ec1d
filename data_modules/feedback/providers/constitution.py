"""Constitutional AI: a model criticises and revises replies according to principles, in one or more rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

import yaml

from data_modules.feedback.providers import prompts
from data_modules.feedback.providers.answer import Unanswered
from data_modules.feedback.providers.client import Client
from data_modules.feedback.providers.endpoint import Endpoint
from data_modules.feedback.providers.model_judge import ask_all
from data_modules.feedback.providers.provider import Account, with_answers
from data_modules.feedback.providers.questions import Note, ask_and_read, text_of, words
from data_modules.judgements.schema import Judgement
from data_modules.text.templates import refuse_template
from lightning_nlf.numbers import Seed, Size


@dataclass(frozen=True)
class Principle:
    """A principle of a constitution, as the requests that are sent to a model.

    Source: https://arxiv.org/abs/2212.08073, appendix C.
    """

    name: str
    critique: str  # the critique request
    revision: str  # the revision request
    preference: str | None = None  # question about two responses, to be answered with 1 or 2


def read_principles(path: str | Path) -> list[Principle]:
    """Read the list `principles` of a yaml file.

    Raises:
        ValueError: the file or the list is missing, a principle has wrong fields, or two have the same name.
    """
    if not Path(path).is_file():
        raise ValueError(f"principles: the file {path} does not exist")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"principles: {path} is not valid yaml: {error}") from None
    listed = content.get("principles") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"principles: {path} must have a non-empty list `principles`")
    principles = [_principle(entry, f"principles: {path}, number {number}") for number, entry in enumerate(listed, 1)]
    names = [principle.name for principle in principles]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"principles: {path} has two principles named {sorted(twice)[0]!r}; rename one")
    return principles


def _principle(entry: object, where: str) -> Principle:
    names = [f.name for f in fields(Principle)]
    needed = names[:3]
    if not isinstance(entry, dict) or not set(needed) <= set(entry) <= set(names):
        raise ValueError(f"{where}: must have the fields {', '.join(needed)}, may have {names[3]}, and no others")
    if not all(isinstance(text, str) and text.strip() for text in entry.values()):
        raise ValueError(f"{where}: all fields must be non-empty texts")
    return Principle(**{name: text.strip() for name, text in entry.items()})


class Constitution:
    """Critique and revision by principles: the supervised stage of Constitutional AI.

    Source: https://arxiv.org/abs/2212.08073. The first response of each line is revised. The last revision becomes
    `expected`, and `meta.revisions` holds the principle, critique and revision of each round. Lines that already have
    `expected` are unchanged.

    Args:
        endpoint: endpoint of the model that criticises and revises.
        principles: path of a yaml file with principles, see `read_principles`.
        rounds: number of revisions per response.
        seed: seed for choosing the principle of each round, together with the prompt and the response.
        critique_request: template with the places `{prompt}`, `{response}` and `{request}`.
        revision_request: template with `{prompt}`, `{response}`, `{request}`, `{critique}` and `{revision_request}`.
        max_tokens: maximum number of tokens in a critique or a revision.

    Raises:
        ValueError: there are no principles, `rounds` is below 1, or a template lacks a place.
    """

    gives: tuple[str, ...] = ("expected",)

    def __init__(
        self,
        endpoint: Endpoint,
        principles: str,
        rounds: Size = 1,
        seed: Seed = 0,
        critique_request: str = prompts.CRITIQUE_REQUEST,
        revision_request: str = prompts.REVISION_REQUEST,
        max_tokens: Size = 512,
    ) -> None:
        if rounds < 1:
            raise ValueError(f"rounds: got {rounds}, must be at least 1")
        needed = ("prompt", "response", "request")
        refuse_template("critique_request", critique_request, needed)
        refuse_template("revision_request", revision_request, ("critique", "revision_request"), needed)
        self.endpoint, self.principles = endpoint, read_principles(principles)
        self.rounds, self.seed, self.max_tokens = rounds, seed, max_tokens
        self.critique_request, self.revision_request = critique_request, revision_request

    def complete(self, judgements: Sequence[Judgement], tick: Callable[[], object]) -> tuple[list[Judgement], Account]:
        return ask_all(self.endpoint, judgements, self._revised, tick)

    def principles_for(self, judgement: Judgement) -> list[Principle]:
        """The principle for each round. No principle repeats before all have been used."""
        rng = Random(f"{self.seed} {text_of(judgement)} {judgement.responses[0]}")
        every: list[Principle] = []
        while len(every) < self.rounds:
            every += rng.sample(self.principles, len(self.principles))
        return every[: self.rounds]

    async def _revised(self, client: Client, judgement: Judgement, note: Note) -> Judgement:
        if judgement.expected is not None or not judgement.responses:
            return judgement
        prompt, response = text_of(judgement), judgement.responses[0]
        rounds: list[dict[str, Any]] = []
        try:
            for principle in self.principles_for(judgement):
                critique, response = await self._round(client, prompt, response, principle)
                rounds.append({"principle": principle.name, "critique": critique, "revision": response})
        except Unanswered as error:  # an incomplete chain has no final revision; its answers stay in the cache
            note(error)
            return judgement
        meta = judgement.meta | {"revisions": rounds}
        return with_answers(judgement, self.endpoint.model, expected=response, meta=meta)

    async def _round(self, client: Client, prompt: str, response: str, principle: Principle) -> tuple[str, str]:
        """One round: a critique and a revision of a response."""
        places = {"prompt": prompt, "response": response.strip(), "request": principle.critique}
        critique = await ask_and_read(client, words, self.critique_request.format(**places), self.max_tokens)
        places |= {"critique": critique, "revision_request": principle.revision}
        return critique, await ask_and_read(client, words, self.revision_request.format(**places), self.max_tokens)
