"""A reply that two speak: the learner begins, and an expert goes on to its end."""

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
    """The expert takes over at the first token that the critique of the learner's reply points at.

    For tasks that are `SpanTeacher`. What is missing from a reply has no span, so the reply stays as it is.
    """

    asks = "errors"

    def calls(self, evidence: Tensor) -> Tensor:
        return evidence


@dataclass
class TakenOver:
    """A `Replier` of one turn: the learner, and behind its part the expert.

    Args:
        takeover: asked after the learner's part, where it asks anything; its plan has decided before, in `limits`.
        prompts: of each reply.
        chosen: rows that may be taken over.
        limits: (replies,) tokens that the learner may say; seeds: (replies,) int64, of the expert.
    """

    learner: Actor
    expert: Replier
    takeover: Takeover
    conversation: Conversation
    prompts: list[Prompt]
    chosen: list[int]
    limits: Tensor
    seeds: Tensor
    own: dict[int, int] = field(default_factory=dict)  # tokens of the learner's, where the expert went on
    cut_off: int = 0  # tokens that the learner said in vain

    def reply(
        self, ids: Tensor, lengths: Tensor, state: Any = None, *, stop: Sequence[int], max_new: int, **how: Any
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """`Replier.reply`."""
        how = how | {"stop": stop, "max_new": max_new, "limits": self.limits}
        tokens, log_probs, counts, _ = self.learner.reply(ids, lengths, state, **how)
        each = zip(tokens.tolist(), log_probs.tolist(), counts.tolist(), strict=True)
        said = [(row[:count], chances[:count]) for row, chances, count in each]
        for row, kept in self._kept([said[row][0] for row in self.chosen]).items():
            if kept < max_new and (not kept or said[row][0][kept - 1] not in stop):
                self.own[row] = kept
                self.cut_off += len(said[row][0]) - kept
        if self.own:
            self._go_on(said, stop, max_new, tokens.device)
        counts = torch.tensor([len(row) for row, _ in said])
        rows, chances = ([torch.tensor(both[i]) for both in said] for i in (0, 1))
        return pad_sequence(rows, batch_first=True), pad_sequence(chances, batch_first=True), counts, None

    def _go_on(
        self, said: list[tuple[list[int], list[float]]], stop: Sequence[int], max_new: int, device: torch.device
    ) -> None:
        """Puts the expert's words behind what is kept of the learner's."""
        begun = [torch.tensor(self.prompts[row].ids + said[row][0][:kept]) for row, kept in self.own.items()]
        limits = max_new - torch.tensor(list(self.own.values()))
        tokens, log_probs, counts, _ = self.expert.reply(
            pad_sequence(begun, batch_first=True).to(device),
            torch.tensor([len(ids) for ids in begun], device=device),
            stop=stop,
            max_new=int(limits.max()),
            seeds=self.seeds[list(self.own)],
            limits=limits,
        )
        more = zip(self.own.items(), tokens.tolist(), log_probs.tolist(), counts.tolist(), strict=True)
        for (row, kept), ids, chances, count in more:
            said[row] = (said[row][0][:kept] + ids[:count], said[row][1][:kept] + chances[:count])

    def _kept(self, replies: list[list[int]]) -> dict[int, int]:
        """How much of the chosen replies stays if somebody goes on, by their row."""
        lengths = [len(reply) for reply in replies]
        if self.takeover.asks is None:
            return dict(zip(self.chosen, lengths, strict=True))
        evidence = self._errors(replies) if self.takeover.asks == "errors" else self._values(replies)
        called = [part.nonzero()[:, 0].tolist() for part in self.takeover.calls(evidence).split(lengths)]
        kept = [places[0] if places else length for places, length in zip(called, lengths, strict=True)]
        return dict(zip(self.chosen, kept, strict=True))

    def _errors(self, replies: list[list[int]]) -> Tensor:
        """Bool (N,) over the tokens of all replies, True at the first that the critique of its reply points at."""
        task = self.conversation.task
        assert isinstance(task, SpanTeacher)
        pointed = [torch.zeros(len(reply), dtype=torch.bool) for reply in replies]
        for row, reply, steps in zip(self.chosen, replies, pointed, strict=True):
            spans = task.spans(self.prompts[row].case, self.conversation.text(reply))
            if spans:
                first = min(begin for begin, _ in spans)
                place = before(self.conversation.unstopped(reply), first, self.conversation.tokenizer)
                steps[place : place + 1] = True  # none where a reply that was cut has no such token
        return torch.cat(pointed)

    def _values(self, replies: list[list[int]]) -> Tensor:
        """V (N,) before each token of all replies, by the learner's critic."""
        batch = as_rows([self.prompts[row].ids for row in self.chosen], replies)
        return self.learner.token_values(batch).cpu()[batch.mask]


def before(said: Sequence[int], character: int, tokenizer: Tokenizer) -> int:
    """How many tokens of a reply without its stop token stand before the one that says the character."""
    return bisect_right(range(len(said)), character, key=lambda place: len(tokenizer.decode(said[: place + 1])))
