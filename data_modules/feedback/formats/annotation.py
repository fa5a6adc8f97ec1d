"""Answers of one annotator about the responses to a prompt; the role of a field is inferred from its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_modules.feedback.formats.account import Account, LeftOut, Options
from data_modules.feedback.formats.chat import conversation, posed
from data_modules.feedback.formats.comparisons import Comparison, compared
from data_modules.feedback.formats.value import Value
from data_modules.judgements.fields import cut
from data_modules.judgements.ranking import format_ranking
from data_modules.judgements.schema import Judgement, PromptText, Span

PROMPTS = ("prompt", "instruction", "question", "query", "input", "context", "conversation", "dialogue")
_RESPONSE = re.compile(r"(?i)(response|completion|answer|output|generation|reply|summary|chosen|rejected)")
_EXPECTED = re.compile(r"(?i)(correct|expected|edit|rewrit|revis|improve|ideal|gold|reference)")
_CRITIQUE = re.compile(r"(?i)(critique|feedback|comment|expla|rational|reason|why|note|issue|problem)")


def prompt_of(fields: Mapping[str, Value], options: Options, account: Account) -> tuple[str, PromptText]:
    """The name and the content of the prompt field. The content is a text or messages."""
    names = [options.prompt] if options.prompt else PROMPTS
    name = next((name for name in names if name in fields), None)
    if name is None:
        field_names = cut(", ".join(fields))
        raise ValueError(
            f"no field is called {', '.join(names)}; set --prompt to the field with the prompt: {field_names}"
        )
    if isinstance(fields[name].json, list):
        return name, posed(conversation(fields[name], account))
    text = fields[name].words()
    if text is None:
        raise LeftOut("records without a prompt")
    return name, text


def responses_of(fields: Mapping[str, Value], options: Options, prompt: str) -> dict[str, str]:
    """The responses, by field name."""
    names = options.responses or [name for name in fields if name != prompt and _RESPONSE.search(name)]
    texts = {name: fields[name].words() for name in names if name in fields}
    if not texts:
        field_names = cut(", ".join(fields))
        raise ValueError(f"no field name looks like a response; set --responses to the right ones of: {field_names}")
    responses = {name: text for name, text in texts.items() if text}
    if not responses:
        raise LeftOut("records without an answer")
    return responses


@dataclass
class Sheet:
    """Collect the answers of one annotator about one record.

    Args: responses: the texts of the responses by field name, such as `response1`.
    """

    prompt: PromptText
    responses: dict[str, str]
    source: str | None
    account: Account
    score: dict[int, float] = field(default_factory=dict)
    critique: dict[int, list[str]] = field(default_factory=dict)
    spans: dict[int, list[Span]] = field(default_factory=dict)
    expected: str | None = None
    ranks: tuple[int, ...] | None = None
    comparisons: list[Comparison] = field(default_factory=list)

    def place(self, name: str) -> int | None:
        """Index of the response that a name refers to: the only one, or by equal name, contained name or number."""
        names = list(self.responses)
        if len(names) == 1 or name in names:
            return 0 if len(names) == 1 else names.index(name)
        within = [i for i, response in enumerate(names) if response in name]
        digits = re.findall(r"\d+", name)[-1:]
        same_number = [i for i, response in enumerate(names) if digits and re.findall(r"\d+", response)[-1:] == digits]
        return next((places[0] for places in (within, same_number) if len(places) == 1), None)

    def rate(self, question: str, score: float) -> None:
        """Set the score of the response that the question is about. Only the first score of a response counts."""
        i = self.place(question)
        if i is None or i in self.score:
            why = "name no response" if i is None else "repeat the rating of a response"
            self.account.note(f"ratings left out because they {why}: `{cut(question)}`")
        else:
            self.score[i] = score

    def write(self, question: str, text: str, about: str | None = None) -> None:
        """Add a text: the expected response, or a critique of the response that `about` or the question names."""
        options, i = self.account.options, self.place(about or question)
        if question == options.expected or question != options.critique and _EXPECTED.search(question):
            if self.expected is not None:
                self.account.note("further expected responses left out")
            self.expected = self.expected or text
        elif (question == options.critique or _CRITIQUE.search(question)) and i is not None:
            self.critique.setdefault(i, []).append(text)
        else:
            hint = "name no response" if i is None else "look like neither --critique nor --expected"
            self.account.note(f"answers left out because they {hint}: `{cut(question)}`")

    def judgements(self, name: str | None, meta: dict[str, Any]) -> list[Judgement]:
        """The judgements from the answers; an empty list if no answer could be used."""
        if not (self.score or self.critique or self.expected or self.ranks or self.comparisons):
            self.account.note("annotations left out because none of their answers could be converted")
            return []
        places = range(len(self.responses))
        judgement = Judgement(
            self.prompt,
            tuple(self.responses.values()),
            score=tuple(self.score.get(i) for i in places) if self.score else None,
            critique=tuple("\n".join(self.critique[i]) if i in self.critique else None for i in places)
            if self.critique
            else None,
            spans=tuple(tuple(self.spans[i]) if i in self.spans else None for i in places) if self.spans else None,
            expected=self.expected,
            ranking=format_ranking(self.ranks) if self.ranks else None,
            source=self.source,
            meta=meta,
            id=name,
        )
        return compared(judgement, self.comparisons, self.account)
