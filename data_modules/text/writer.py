"""Text generation by a language model from text prompts, with any tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_modules.judgements.schema import PromptText
from data_modules.text.prompts import PromptFormat
from lightning_nlf.batch import Replier

AT_ONCE = 64  # prompts per batch


@dataclass(frozen=True)
class Placed:
    """A `Replier` that moves its inputs to a device, because prompts encoded from text are on the CPU."""

    replier: Replier
    device: torch.device

    def reply(self, ids: Tensor, lengths: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """See `Replier.reply`."""
        return self.replier.reply(ids.to(self.device), lengths.to(self.device), state, **how)


@dataclass(frozen=True)
class Written:
    """A text from a model, and whether the text is finished or was cut off."""

    text: str
    finished: bool = True
    tokens: int = 0  # number of tokens that the model sampled


@dataclass(frozen=True)
class Writer:
    """Write texts for prompts with a language model, in batches of `AT_ONCE`.

    Args:
        format: format that turns prompts into the model's ids.
        stops: the ids that end a text.
        context: number of tokens that the model can read; None = no limit.
    """

    replier: Replier
    format: PromptFormat
    stops: tuple[int, ...]
    context: int | None = None

    def write(
        self,
        prompts: Sequence[PromptText],
        max_new: int,
        seeds: Sequence[int] | None = None,
        top_p: float = 1.0,
        temperature: float = 1.0,
    ) -> list[Written | None]:
        """Write a text for each prompt; None if the prompt spells a special token, or leaves no room for a text.

        Args: seeds: one seed per prompt; None = greedy decoding.
        """
        ids = [self._encoded(prompt, max_new) for prompt in prompts]
        places = [place for place, row in enumerate(ids) if row is not None]
        row_seeds = None if seeds is None else [seeds[place] for place in places]
        texts = self.replies([row for row in ids if row is not None], max_new, row_seeds, top_p, temperature)
        by_prompt: list[Written | None] = [None] * len(prompts)
        for place, text in zip(places, texts, strict=True):
            by_prompt[place] = text
        return by_prompt

    def replies(
        self,
        ids: Sequence[list[int]],
        max_new: int,
        seeds: Sequence[int] | None = None,
        top_p: float = 1.0,
        temperature: float = 1.0,
    ) -> list[Written]:
        """Write a text for each prompt, as `write` does, for prompts that are already token ids."""
        texts: list[Written] = []
        for first in range(0, len(ids), AT_ONCE):
            chunk = slice(first, first + AT_ONCE)
            tokens, _, lengths, _ = self.replier.reply(
                pad_sequence([torch.tensor(row) for row in ids[chunk]], batch_first=True),
                torch.tensor([len(row) for row in ids[chunk]]),
                stop=self.stops,
                max_new=max_new,
                seeds=None if seeds is None else torch.tensor(seeds[chunk]),
                top_p=top_p,
                temperature=temperature,
                deterministic=seeds is None,
            )
            rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
            texts += [self._text(row[:length]) for row, length in rows]
        return texts

    def _text(self, tokens: list[int]) -> Written:
        finished = tokens[-1] in self.stops
        return Written(self.format.tokenizer.decode(tokens[:-1] if finished else tokens).strip(), finished, len(tokens))

    def _encoded(self, prompt: PromptText, max_new: int) -> list[int] | None:
        try:
            ids = self.format.ids(prompt)
        except ValueError:
            return None
        return None if self.context is not None and len(ids) + max_new > self.context else ids
