"""Supervised fine-tuning by negative log-likelihood: prompts and replies as rows of an expert."""

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
from data_modules.text.checks import row_limit
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.held_out import HeldOutReplies
from data_modules.text.held_out_prompts import HeldOutLine
from data_modules.text.prompts import texts_of
from data_modules.text.rows import EXPERT, as_rows
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.batch import Actor, Batch, Workload
from lightning_nlf.numbers import Size

HELD_OUT_ROWS = 64  # rows per held-out batch


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the reply to imitate, as text and as token ids."""

    prompt: PromptText
    reply: str
    prompt_ids: np.ndarray  # (P,)
    reply_ids: np.ndarray  # (R,), including the stop token

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)


class ImitationDataModule(HeldOutReplies):
    """Supervised fine-tuning on prompts with replies to imitate, as rows of an expert.

    Subclasses implement `texts`. All rows are checked before training starts. `val` and `test` are batches without
    rewards, and the module logs how well it predicts their replies. If there is a task, the policy also replies to the
    task's prompts at evaluation.

    Args:
        tokenizer: tokenizer of the model. A new one is built from the task's corpus, or from the training texts if
            there is no task.
        task: text task that provides prompts to evaluate on.
        rows: number of demonstrations per epoch, over all ranks. No demonstration repeats before all have been used.
            None = all.
        context: number of tokens that the policy can read; longer rows are an error.
        evaluation_prompts, chat, reward: see `HeldOutReplies`.
        seed, minibatches, passes, rows_per_batch, tokens_per_batch: see `MinibatchDataModule`.

    Raises:
        ValueError: at `setup`, a word is unknown or a row is too long. The message gives the place and what to do.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        task: TextEnvironment | None = None,
        rows: Size | None = None,
        context: Size | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, task, context=context, **kwargs)
        at_least(1, rows=rows, context=context)
        self.rows = rows
        self.demonstrations: dict[Split, list[Demonstration]] = {}
        self.counters |= {"rows": 0, "tokens": 0}  # number of rows used so far, and of their reply tokens

    def texts(self, split: Split) -> Iterator[tuple[PromptText, str, str]]:
        """Yield prompt, reply and source of each demonstration. The split `train` must have at least one."""
        raise NotImplementedError

    # ---- before training

    def setup(self, stage: str) -> None:
        if self.demonstrations:
            return
        texts = {split: list(self.texts(split)) for split in get_args(Split)}
        if not self.tokenizer.ready:
            self.tokenizer.fit(_texts(texts["train"]) if self.task is None else self.task.corpus())
        self.demonstrations = {split: [self._encoded(*text) for text in texts[split]] for split in texts}
        train = self.demonstrations["train"]
        if self.rows is not None and self.rows > len(train):
            raise ValueError(
                f"rows: got {self.rows}, and there are {len(train)} demonstrations; use passes to repeat them"
            )
        prompt, reply = max(len(row.prompt_ids) for row in train), max(len(row.reply_ids) for row in train)
        held_out = {
            split: [HeldOutLine(row.prompt, row.reply) for row in demonstrations]
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
        context = row_limit(self.context, self.trainer)
        if context is not None and encoded.length > context:
            raise ValueError(
                f"{where}: {encoded.length} tokens exceed the {context} tokens of a row (context): shorten the text, "
                "or raise context"
            )
        return encoded

    # ---- size and identity of the data

    @property
    def longest_row(self) -> int:
        """Number of tokens, prompt and reply together, in the longest demonstration or evaluation episode."""
        return max(self._longest_demonstration, self.longest_played)

    @property
    def workload(self) -> Workload:
        demonstrations = self.demonstrations["train"]
        rows, tokens = self.rows or len(demonstrations), sum(row.length for row in demonstrations)
        return Workload(rows, rows * tokens // len(demonstrations), self.passes, evaluation=self.validation)

    @property
    def _longest_demonstration(self) -> int:
        return max(row.length for demonstrations in self.demonstrations.values() for row in demonstrations)

    @property
    def data_digest(self) -> str:
        """SHA-256 of the texts of all splits, in order."""
        content = {split: [[plain(d.prompt), d.reply] for d in rows] for split, rows in self.demonstrations.items()}
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    # ---- training

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        amount = self.rows or len(self.demonstrations["train"])
        self.refuse_too_few("rows", amount)
        places = self._order(amount, self.trainer.current_epoch)[self.trainer.global_rank :: self._world_size]
        chosen = [self.demonstrations["train"][i] for i in places]
        tokens = sum(len(row.reply_ids) for row in chosen)
        self.count(rows=len(chosen), tokens=tokens)
        total, rows = self._sum_over_ranks(torch.tensor([tokens, len(chosen)], dtype=torch.float64)).tolist()
        self.statistics = {"reply_tokens": total / rows}
        return _rows(chosen)

    def _order(self, amount: int, epoch: int) -> np.ndarray:
        """Indices of an epoch's demonstrations over all ranks, as a slice of one endless series of shuffles."""
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
        """The loaders of replies, then one of this rank's held-out rows, sorted by length to save padding."""
        demonstrations = self.demonstrations[split]
        if not demonstrations:
            return self.reply_loaders(split)
        if len(demonstrations) < self._world_size:
            raise ValueError(
                f"{split}: got {len(demonstrations)} demonstrations for {self._world_size} processes; give more "
                "demonstrations, or use fewer devices"
            )
        local = sorted(demonstrations, key=lambda row: row.length)[self.trainer.global_rank :: self._world_size]
        parts = [local[first : first + HELD_OUT_ROWS] for first in range(0, len(local), HELD_OUT_ROWS)]
        return [*self.reply_loaders(split), loader(lambda: map(_rows, parts), len(parts))]


def _rows(chosen: list[Demonstration]) -> Batch:
    return as_rows([row.prompt_ids for row in chosen], [row.reply_ids for row in chosen], EXPERT)


def _texts(demonstrations: list[tuple[PromptText, str, str]]) -> Iterator[str]:
    for prompt, reply, _ in demonstrations:
        yield from [*texts_of(prompt), reply]
