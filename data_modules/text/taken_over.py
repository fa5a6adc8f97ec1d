"""Replies with a take-over: the learner begins a reply, and an expert continues it to the end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_modules.takeover import Takeover
from data_modules.text.conversation import Conversation
from data_modules.text.environment import SpanTeacher
from data_modules.text.episode import Prompt
from data_modules.text.rows import as_rows
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.batch import Actor, Replier


class AtFirstError(Takeover):
    """The expert takes over at the first token that the critique of the learner's reply is about.

    For tasks that are a `SpanTeacher`. An omission has no span, so a reply whose only errors are omissions does not
    change.
    """

    asks = "errors"

    def calls(self, evidence: Tensor) -> Tensor:
        return evidence


@dataclass
class TakenOver:
    """A `Replier` for one turn: the learner begins each reply, and the expert may continue it.

    Args:
        takeover: the take-over rule. A rule with `asks` places the take-over by looking at the learner's tokens; the
            plan of any other rule is already in `limits`.
        prompts: one prompt for each reply.
        chosen: rows in which the expert may take over.
        limits: (replies,) maximum number of learner tokens in each reply.
        seeds: (replies,) int64, the expert's seeds.
    """

    learner: Actor
    expert: Replier
    takeover: Takeover
    conversation: Conversation
    prompts: list[Prompt]
    chosen: list[int]
    limits: Tensor
    seeds: Tensor
    learner_tokens: dict[int, int] = field(default_factory=dict)  # row → number of tokens before the expert's
    cut_off: int = 0  # number of the learner's tokens that were discarded

    def reply(
        self, ids: Tensor, lengths: Tensor, state: Any = None, *, stop: Sequence[int], max_new: int, **how: Any
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """See `Replier.reply`."""
        how = how | {"stop": stop, "max_new": max_new, "limits": self.limits}
        tokens, log_probs, counts, _ = self.learner.reply(ids, lengths, state, **how)
        rows = zip(tokens.tolist(), log_probs.tolist(), counts.tolist(), strict=True)
        replies = [(row[:count], chances[:count]) for row, chances, count in rows]
        for row, length in self._learner_lengths([replies[row][0] for row in self.chosen]).items():
            if length < max_new and (not length or replies[row][0][length - 1] not in stop):
                self.learner_tokens[row] = length
                self.cut_off += len(replies[row][0]) - length
        if self.learner_tokens:
            self._go_on(replies, stop, max_new, tokens.device)
        counts = torch.tensor([len(row) for row, _ in replies])
        parts, chances = ([torch.tensor(reply[i]) for reply in replies] for i in (0, 1))
        return pad_sequence(parts, batch_first=True), pad_sequence(chances, batch_first=True), counts, None

    def _go_on(
        self, replies: list[tuple[list[int], list[float]]], stop: Sequence[int], max_new: int, device: torch.device
    ) -> None:
        """Let the expert continue the learner's part of the replies; changes `replies` in place."""
        begun = [
            torch.tensor(self.prompts[row].ids + replies[row][0][:length])
            for row, length in self.learner_tokens.items()
        ]
        limits = max_new - torch.tensor(list(self.learner_tokens.values()))
        tokens, log_probs, counts, _ = self.expert.reply(
            pad_sequence(begun, batch_first=True).to(device),
            torch.tensor([len(ids) for ids in begun], device=device),
            stop=stop,
            max_new=int(limits.max()),
            seeds=self.seeds[list(self.learner_tokens)],
            limits=limits,
        )
        rows = zip(self.learner_tokens.items(), tokens.tolist(), log_probs.tolist(), counts.tolist(), strict=True)
        for (row, length), expert_ids, chances, count in rows:
            ids, log_probs_before = replies[row]
            replies[row] = (ids[:length] + expert_ids[:count], log_probs_before[:length] + chances[:count])

    def _learner_lengths(self, replies: list[list[int]]) -> dict[int, int]:
        """Row → number of learner tokens to keep, for each chosen reply in which the expert takes over."""
        lengths = [len(reply) for reply in replies]
        if self.takeover.asks is None:
            return dict(zip(self.chosen, lengths, strict=True))
        evidence = self._errors(replies) if self.takeover.asks == "errors" else self._values(replies)
        called = [part.nonzero()[:, 0].tolist() for part in self.takeover.calls(evidence).split(lengths)]
        kept_lengths = [places[0] if places else length for places, length in zip(called, lengths, strict=True)]
        return dict(zip(self.chosen, kept_lengths, strict=True))

    def _errors(self, replies: list[list[int]]) -> Tensor:
        """Bool (N,) over the tokens of all replies, True at the first token that a critique is about."""
        task = self.conversation.task
        assert isinstance(task, SpanTeacher)
        pointed = [torch.zeros(len(reply), dtype=torch.bool) for reply in replies]
        for row, reply, steps in zip(self.chosen, replies, pointed, strict=True):
            spans = task.spans(self.prompts[row].case, self.conversation.text(reply))
            if spans:
                first = min(begin for begin, _ in spans)
                place = before(self.conversation.unstopped(reply), first, self.conversation.tokenizer)
                steps[place : place + 1] = True  # no token if a cut reply ends before the error
        return torch.cat(pointed)

    def _values(self, replies: list[list[int]]) -> Tensor:
        """V before each token of all replies, (N,), from the learner's critic."""
        batch = as_rows([self.prompts[row].ids for row in self.chosen], replies)
        return self.learner.token_values(batch).cpu()[batch.mask]


def before(ids: Sequence[int], character: int, tokenizer: Tokenizer) -> int:
    """Number of tokens before the token that contains `character`, in a reply without its stop token."""
    return bisect_right(range(len(ids)), character, key=lambda place: len(tokenizer.decode(ids[: place + 1])))
