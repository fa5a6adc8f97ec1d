"""A language model as a writer: prompts in, texts out, whatever its tokenizer is."""

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

AT_ONCE = 64  # prompts


@dataclass(frozen=True)
class Placed:
    """A `Replier` on a device of its choice: prompts come from texts, and an expert replies where they are."""

    replier: Replier
    device: torch.device

    def reply(self, ids: Tensor, lengths: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """`Replier.reply`."""
        return self.replier.reply(ids.to(self.device), lengths.to(self.device), state, **how)


@dataclass(frozen=True)
class Written:
    """A text, and whether it ended by itself."""

    text: str
    finished: bool = True
    tokens: int = 0  # that the model sampled for it


@dataclass(frozen=True)
class Writer:
    """A model that replies to prompts, `AT_ONCE` of them at a time.

    Args:
        format: how prompts become the model's ids.
        stops: the ids that end a text.
        context: tokens that the model can read; None without a limit.
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
        """The model's text for each prompt; None where the prompt spells a special token or leaves no room for it.

        Args: seeds: of each prompt's draw; None: the likeliest text.
        """
        ids = [self._encoded(prompt, max_new) for prompt in prompts]
        places = [place for place, row in enumerate(ids) if row is not None]
        drawn = None if seeds is None else [seeds[place] for place in places]
        texts = self.replies([row for row in ids if row is not None], max_new, drawn, top_p, temperature)
        written: list[Written | None] = [None] * len(prompts)
        for place, text in zip(places, texts, strict=True):
            written[place] = text
        return written

    def replies(
        self,
        ids: Sequence[list[int]],
        max_new: int,
        seeds: Sequence[int] | None = None,
        top_p: float = 1.0,
        temperature: float = 1.0,
    ) -> list[Written]:
        """The same to prompts that are ids."""
        written: list[Written] = []
        for first in range(0, len(ids), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            tokens, _, lengths, _ = self.replier.reply(
                pad_sequence([torch.tensor(row) for row in ids[some]], batch_first=True),
                torch.tensor([len(row) for row in ids[some]]),
                stop=self.stops,
                max_new=max_new,
                seeds=None if seeds is None else torch.tensor(seeds[some]),
                top_p=top_p,
                temperature=temperature,
                deterministic=seeds is None,
            )
            rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
            written += [self._text(row[:length]) for row, length in rows]
        return written

    def _text(self, tokens: list[int]) -> Written:
        finished = tokens[-1] in self.stops
        return Written(self.format.tokenizer.decode(tokens[:-1] if finished else tokens).strip(), finished, len(tokens))

    def _encoded(self, prompt: PromptText, max_new: int) -> list[int] | None:
        try:
            ids = self.format.ids(prompt)
        except ValueError:
            return None
        return None if self.context is not None and len(ids) + max_new > self.context else ids
