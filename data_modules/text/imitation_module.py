"""Prompts and replies as expert rows: imitated by negative log-likelihood they are supervised fine-tuning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch.utils.data import DataLoader

from data_modules.judgements.schema import PromptText, plain
from data_modules.minibatches import loader
from data_modules.ranges import at_least
from data_modules.text.checks import context_of_model
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.held_out import HeldOutReplies
from data_modules.text.held_out_prompts import HeldOutLine
from data_modules.text.prompts import texts_of
from data_modules.text.rows import EXPERT, as_rows
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.batch import Actor, Batch, Workload
from lightning_nlf.numbers import Size

HELD_OUT_ROWS = 64  # a batch of an evaluation


@dataclass(frozen=True)
class Demonstration:
    """A prompt and what should be said to it, as text and in tokens."""

    prompt: PromptText
    reply: str
    prompt_ids: np.ndarray  # (P,)
    reply_ids: np.ndarray  # (R,), the stop token included

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)


class ImitationDataModule(HeldOutReplies):
    """Prompts and what should be said to them, as rows that are imitated and nothing else.

    A child says which (`texts`). All are checked before training starts. `val` and `test` are batches without
    rewards: the module logs how well it predicts them. Beside them a task's prompts are played.

    Args:
        tokenizer: made from the task's corpus, or without a task from the texts of training.
        task: whose prompts are played.
        rows: demonstrations an epoch, over all ranks; none comes a second time before all had their turn. By default
            an epoch is all of them.
        context: tokens that the policy can read; a row that is longer is refused.
        evaluation_prompts, chat, reward: of `HeldOutReplies`.
        seed, minibatches, passes, rows_per_batch, tokens_per_batch: of `MinibatchDataModule`.

    Raises:
        ValueError: at `setup` an unknown word, or a row that is too long, with where it stands and what to do.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        task: TextEnvironment | None = None,
        rows: Size | None = None,
        context: Size | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, task, context=context, **kwargs)
        at_least(1, rows=rows, context=context)
        self.rows = rows
        self.demonstrations: dict[Split, list[Demonstration]] = {}
        self.counters |= {"rows": 0, "tokens": 0}  # seen, and of those the tokens imitated

    def texts(self, split: Split) -> Iterator[tuple[PromptText, str, str]]:
        """Prompt, reply, and where they stand; at least one of `train`."""
        raise NotImplementedError

    # ---- before training

    def setup(self, stage: str) -> None:
        if self.demonstrations:
            return
        found = {split: list(self.texts(split)) for split in get_args(Split)}
        self.tokenizer.fit(_texts(found["train"]) if self.task is None else self.task.corpus())
        self.demonstrations = {split: [self._encoded(*each) for each in found[split]] for split in found}
        known = self.demonstrations["train"]
        if self.rows is not None and self.rows > len(known):
            raise ValueError(
                f"rows: got {self.rows}, and there are {len(known)} demonstrations; use passes to repeat them"
            )
        prompt, reply = max(len(each.prompt_ids) for each in known), max(len(each.reply_ids) for each in known)
        held_out = {
            split: [HeldOutLine(each.prompt, each.reply) for each in demonstrations]
            for split, demonstrations in self.demonstrations.items()
        }
        self.set_up_replies(self._longest_demonstration, prompt, reply, held_out)

    def _encoded(self, prompt: PromptText, reply: str, where: str) -> Demonstration:
        try:
            prompt_ids = self.format.ids(prompt)
            reply_ids = [*self.tokenizer.encode_reply(reply), self.tokenizer.eos]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        encoded = Demonstration(prompt, reply, np.array(prompt_ids), np.array(reply_ids))
        context = self.context or context_of_model(self.trainer)
        if context is not None and encoded.length > context:
            raise ValueError(
                f"{where}: {encoded.length} tokens, and a row may have {context} (context): shorten it, or raise "
                "context"
            )
        return encoded

    # ---- what a run is about

    @property
    def longest_row(self) -> int:
        """Tokens of the longest demonstration or episode, prompt and reply."""
        return max(self._longest_demonstration, self.longest_played)

    @property
    def workload(self) -> Workload:
        demonstrations = self.demonstrations["train"]
        rows, tokens = self.rows or len(demonstrations), sum(each.length for each in demonstrations)
        return Workload(rows, rows * tokens // len(demonstrations), self.passes, evaluation=self.validation)

    @property
    def _longest_demonstration(self) -> int:
        return max(each.length for found in self.demonstrations.values() for each in found)

    @property
    def data_digest(self) -> str:
        """SHA-256 of the texts of all splits, in their order."""
        content = {split: [[plain(d.prompt), d.reply] for d in found] for split, found in self.demonstrations.items()}
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    # ---- training

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        amount = self.rows or len(self.demonstrations["train"])
        self.refuse_too_few("rows", amount)
        places = self._drawn(amount, self.trainer.current_epoch)[self.trainer.global_rank :: self._world_size]
        chosen = [self.demonstrations["train"][i] for i in places]
        tokens = sum(len(each.reply_ids) for each in chosen)
        self.count(rows=len(chosen), tokens=tokens)
        said, rows = self._sum_over_ranks(torch.tensor([tokens, len(chosen)], dtype=torch.float64)).tolist()
        self.statistics = {"reply_tokens": said / rows}
        return _rows(chosen)

    def _drawn(self, amount: int, epoch: int) -> np.ndarray:
        """Places of an epoch's demonstrations, on all ranks: a stretch of one shuffled whole after the other."""
        total, first = len(self.demonstrations["train"]), epoch * amount
        rounds = range(first // total, -(-(first + amount) // total))
        order = [np.random.default_rng([self.seed, number]).permutation(total) for number in rounds]
        return np.concatenate(order)[first - rounds[0] * total :][:amount]

    # ---- evaluation

    def val_dataloader(self) -> list[DataLoader]:
        return self._held_out("val")

    def test_dataloader(self) -> list[DataLoader]:
        return self._held_out("test")

    def _held_out(self, split: Split) -> list[DataLoader]:
        """One loader of this rank's share, in the order of length, as that pads least, behind what is played."""
        found = self.demonstrations[split]
        if not found:
            return self.played(split)
        if len(found) < self._world_size:
            raise ValueError(f"{split}: {len(found)} demonstrations for {self._world_size} processes")
        own = sorted(found, key=lambda each: each.length)[self.trainer.global_rank :: self._world_size]
        parts = [own[first : first + HELD_OUT_ROWS] for first in range(0, len(own), HELD_OUT_ROWS)]
        return [*self.played(split), loader(lambda: map(_rows, parts), len(parts))]


def _rows(chosen: list[Demonstration]) -> Batch:
    return as_rows([each.prompt_ids for each in chosen], [each.reply_ids for each in chosen], EXPERT)


def _texts(found: list[tuple[PromptText, str, str]]) -> Iterator[str]:
    for prompt, reply, _ in found:
        yield from [*texts_of(prompt), reply]
