"""A language model as critic or reviser: the policy itself, a frozen model, or a model with a different tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data_modules.judgements.schema import PromptText
from data_modules.ranges import at_least
from data_modules.text.checks import refuse_other_ids
from data_modules.text.critics import UNHEARD, Acting
from data_modules.text.environment import Case, Revisable
from data_modules.text.prompts import Chat, PromptFormat
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.writer import Placed, Writer, Written
from lightning_nlf.batch import Replier
from lightning_nlf.numbers import NonNegative, PositiveShare, Size


class ModelCritic:
    """Critiques and revisions from a language model, with the task's texts around a critique as prompts.

    A critique equal to the task's `praise` counts as no critique. A prompt that leaves no room in the model's context
    gets no answer. A `ModelCritic` as reviser returns text, so the sampled tokens and their log-probabilities are lost.
    To keep both, set a model with the policy's tokenizer directly as `reviser`.

    Args:
        model: model that writes the texts, such as `CheckpointTextExpert` or `PolicyAverage`; by default the policy in
            training.
        tokenizer: the model's tokenizer, if it differs from the policy's.
        max_new: maximum number of tokens in a critique or revision.
        temperature: sampling temperature; 0 = greedy decoding.
        top_p: nucleus sampling; 1 = off.
        chat: see `PromptFormat`; only for a model with its own tokenizer.

    Raises:
        ValueError: a setting is out of range, or a tokenizer is given without a model.
    """

    def __init__(
        self,
        model: Replier | None = None,
        tokenizer: Tokenizer | None = None,
        max_new: Size = 128,
        temperature: NonNegative = 0.0,
        top_p: PositiveShare = 1.0,
        chat: bool | Chat | None = None,
    ) -> None:
        at_least(1, max_new=max_new)
        if temperature < 0:
            raise ValueError(f"temperature: got {temperature}, must be at least 0")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p: got {top_p}, must be in (0, 1]")
        if model is None and tokenizer is not None:
            raise ValueError("tokenizer: without a model the data's tokenizer is used; leave it out, or give a model")
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.max_new, self.temperature, self.top_p = max_new, temperature, top_p
        self.counters = {"tokens": 0}

    def check(self, name: str, cases: Sequence[Case], words: Revisable, policy: PromptFormat) -> None:
        """See `Checked.check`.

        Raises:
            ValueError: the tokenizer is not the model's, or cannot encode the prompt that asks for a critique.
        """
        form = self._format(policy)
        refuse_other_ids(name, self.model, form.tokenizer.digest)
        try:
            form.ids(words.critique_prompt(cases[0], ""))
        except ValueError as error:
            raise ValueError(f"{name}: its tokenizer cannot encode the prompt for a critique: {error}") from None

    def critiques(
        self, cases: Sequence[Case], replies: Sequence[str], seeds: Sequence[int], acting: Acting
    ) -> list[str | None]:
        """See `Critic.critiques`."""
        pairs = zip(cases, replies, strict=True)
        answers = self._write([acting.words.critique_prompt(*pair) for pair in pairs], seeds, acting)
        praise = _bare(acting.words.praise)
        texts = [UNHEARD if answer is None else answer.text for answer in answers]
        return [None if text and _bare(text) == praise else text for text in texts]

    def revisions(
        self,
        cases: Sequence[Case],
        replies: Sequence[str],
        critiques: Sequence[str],
        seeds: Sequence[int],
        acting: Acting,
    ) -> list[Written | None]:
        """See `Reviser.revisions`."""
        cases_with_critiques = zip(cases, replies, critiques, strict=True)
        prompts = [acting.words.revision_prompt(*case_with_critique) for case_with_critique in cases_with_critiques]
        return self._write(prompts, seeds, acting)

    def _write(self, prompts: Sequence[PromptText], seeds: Sequence[int], acting: Acting) -> list[Written | None]:
        how = (seeds, self.top_p, self.temperature) if self.temperature else ()
        answers = self._writer(acting).write(prompts, self.max_new, *how)
        self.counters["tokens"] += sum(answer.tokens for answer in answers if answer is not None)
        return answers

    def _writer(self, acting: Acting) -> Writer:
        if self.model is None:
            return acting.policy
        placed, context = Placed(self.model, acting.device), getattr(self.model, "context", None)
        if self.tokenizer is None:
            return replace(acting.policy, replier=placed, context=context or acting.policy.context)
        return Writer(placed, self._format(acting.policy.format), (self.tokenizer.eos,), context)

    def _format(self, policy: PromptFormat) -> PromptFormat:
        return policy if self.tokenizer is None else PromptFormat(self.tokenizer, self.chat)


def _bare(text: str) -> str:
    """The text in lower case, without surrounding white space and punctuation."""
    return text.strip(" \n\t.!\"'*").lower()
