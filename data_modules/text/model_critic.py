"""A language model as critic or reviser: the policy itself, a frozen model of ours, or one of another tokenizer."""

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
    """Asks a language model what is wrong with each reply, and for better ones, by the task's words around a critique.

    A critique that says what the words say of a right reply (`praise`) is none. Of a question that leaves no room
    in the model's context there is no answer. As a reviser it writes texts: what they were in the model's own tokens,
    and how likely, is not kept. A model of the policy's own tokenizer revises by its tokens if it stands at `reviser`
    itself.

    Args:
        model: such as `CheckpointTextExpert` or `PolicyAverage`; by default the policy that is being trained.
        tokenizer: the model's, where it is another than the policy's.
        max_new: tokens of a critique or a revision.
        temperature: what logits are divided by; 0 takes the likeliest tokens.
        top_p: of sampling.
        chat: of `PromptFormat`, for a model with a tokenizer of its own.

    Raises:
        ValueError: a knob out of range, or a tokenizer without a model.
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
            raise ValueError("tokenizer: the policy has the data's; leave it out, or give a model")
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.max_new, self.temperature, self.top_p = max_new, temperature, top_p
        self.counters = {"tokens": 0}

    def check(self, name: str, cases: Sequence[Case], words: Revisable, policy: PromptFormat) -> None:
        """`Checked.check`.

        Raises:
            ValueError: a tokenizer that is not the model's, or that cannot encode the question about a reply.
        """
        form = self._format(policy)
        refuse_other_ids(name, self.model, form.tokenizer.digest)
        try:
            form.ids(words.critique_prompt(cases[0], ""))
        except ValueError as error:
            raise ValueError(f"{name}: it cannot read what it is asked: {error}") from None

    def critiques(
        self, cases: Sequence[Case], replies: Sequence[str], seeds: Sequence[int], acting: Acting
    ) -> list[str | None]:
        """`Critic.critiques`."""
        pairs = zip(cases, replies, strict=True)
        written = self._write([acting.words.critique_prompt(*pair) for pair in pairs], seeds, acting)
        praise = _bare(acting.words.praise)
        texts = [UNHEARD if each is None else each.text for each in written]
        return [None if text and _bare(text) == praise else text for text in texts]

    def revisions(
        self,
        cases: Sequence[Case],
        replies: Sequence[str],
        critiques: Sequence[str],
        seeds: Sequence[int],
        acting: Acting,
    ) -> list[Written | None]:
        """`Reviser.revisions`."""
        asked = zip(cases, replies, critiques, strict=True)
        return self._write([acting.words.revision_prompt(*each) for each in asked], seeds, acting)

    def _write(self, prompts: Sequence[PromptText], seeds: Sequence[int], acting: Acting) -> list[Written | None]:
        how = (seeds, self.top_p, self.temperature) if self.temperature else ()
        written = self._writer(acting).write(prompts, self.max_new, *how)
        self.counters["tokens"] += sum(each.tokens for each in written if each is not None)
        return written

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
    """Without capitals, and what stands around the words."""
    return text.strip(" \n\t.!\"'*").lower()
