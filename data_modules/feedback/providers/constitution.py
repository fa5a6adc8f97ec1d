"""Constitutional AI: a model criticises and revises replies by principles, round after round."""

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
from data_modules.feedback.providers.provider import Account, said
from data_modules.feedback.providers.questions import Note, asked, text_of, words
from data_modules.judgements.schema import Judgement
from data_modules.text.templates import refuse_template
from lightning_nlf.numbers import Seed, Size


@dataclass(frozen=True)
class Principle:
    """One of them, in words that a model is asked with (https://arxiv.org/abs/2212.08073, appendix C)."""

    name: str
    critique: str  # the critique request
    revision: str  # the revision request
    preference: str | None = None  # what is asked of two responses, to be answered with 1 or 2


def read_principles(path: str | Path) -> list[Principle]:
    """Those of a yaml, under `principles`.

    Raises:
        ValueError: no such file, none in it, one that has not its fields, two of a name.
    """
    if not Path(path).is_file():
        raise ValueError(f"principles: there is no file {path}")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"principles: {path} is no yaml: {error}") from None
    listed = content.get("principles") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"principles: {path} has no list `principles`")
    principles = [_principle(each, f"principles: {path}, number {number}") for number, each in enumerate(listed, 1)]
    names = [principle.name for principle in principles]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"principles: {path} has two of the name {sorted(twice)[0]!r}")
    return principles


def _principle(each: object, where: str) -> Principle:
    names = [f.name for f in fields(Principle)]
    needed = names[:3]
    if not isinstance(each, dict) or not set(needed) <= set(each) <= set(names):
        raise ValueError(f"{where}: needs {', '.join(needed)}, may have {names[3]}, and nothing else")
    if not all(isinstance(text, str) and text.strip() for text in each.values()):
        raise ValueError(f"{where}: its fields are texts")
    return Principle(**{name: text.strip() for name, text in each.items()})


class Constitution:
    """The supervised stage of https://arxiv.org/abs/2212.08073: critique request, revision request, again.

    Of each line the first response is revised; the last revision is `expected`, and `meta.revisions` holds the
    principle, the critique and the revision of each round. A line that has an `expected` already stays.

    Args:
        endpoint: of the model that criticises and revises.
        principles: a yaml of them, see `read_principles`.
        rounds: revisions of a response.
        seed: which principle a round goes by depends on it, the prompt and the response alone.
        critique_request: a template with the places `{prompt}`, `{response}` and `{request}`.
        revision_request: one with `{prompt}`, `{response}`, `{request}`, `{critique}` and `{revision_request}`.
        max_tokens: of a critique, and of a revision.

    Raises:
        ValueError: no principles, no round, a template without its places.
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

    def drawn(self, judgement: Judgement) -> list[Principle]:
        """The principle of each round; none twice before all had their turn."""
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
            for principle in self.drawn(judgement):
                critique, response = await self._round(client, prompt, response, principle)
                rounds.append({"principle": principle.name, "critique": critique, "revision": response})
        except Unanswered as error:  # half a chain is no last revision; what was said is in the cache
            note(error)
            return judgement
        meta = judgement.meta | {"revisions": rounds}
        return said(judgement, self.endpoint.model, expected=response, meta=meta)

    async def _round(self, client: Client, prompt: str, response: str, principle: Principle) -> tuple[str, str]:
        """The critique of a response, and the revision."""
        places = {"prompt": prompt, "response": response.strip(), "request": principle.critique}
        critique = await asked(client, words, self.critique_request.format(**places), self.max_tokens)
        places |= {"critique": critique, "revision_request": principle.revision}
        return critique, await asked(client, words, self.revision_request.format(**places), self.max_tokens)
