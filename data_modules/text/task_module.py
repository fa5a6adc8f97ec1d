"""What every DataModule has that plays a text task with the model that is being trained: prompts, and predictions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from data_modules.minibatches import TEST, loader
from data_modules.rollout import RolloutDataModule
from data_modules.text.conversation import Conversation
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.evaluation import TextEvaluation
from data_modules.text.rows import as_batch
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.transcript import replies_by_prompt
from lightning_nlf.batch import Batch, Scorer
from lightning_nlf.functional import best_rows, row_sums
from lightning_nlf.numbers import Count, PositiveShare, Size

PREDICTED = 64  # prompts at a time


class TextTaskDataModule(TextEvaluation, RolloutDataModule):
    """A text task whose prompts are encoded and checked, played for evaluation, and shown. A child says `collect`.

    Args:
        task: prompts, rules and demonstrations.
        tokenizer: made from the task's corpus at `setup`, or a model's own.
        replies: episodes of one prompt, in training and in a prediction.
        max_new: tokens a reply may have.
        reward: who pays in place of the task's rule, such as a reward model; the rule is logged as `true_reward`.
        window: turns that the policy sees, its own included, for tasks whose last words say all: 1 where they do. A
            row is then one turn, and `extra` says of which `episode` and which `part` of it. Else a dialogue is a row.
        top_k, top_p: of sampling; the stored log-probabilities are of what is left, so the first ratio is not 1.
        evaluation_prompts: of a split, from its first on; None = all. One greedy episode each, and
            `evaluation_replies` sampled ones.
        predict_split: whose prompts `predict` samples `replies` replies to.
        prompt_suffix: text behind every prompt, a control code for instance.
        stop: texts that end a reply as eos does, and are no more of it than that; each is one token.
        chat: a prompt, its suffix too, is the user's message of the tokenizer's own chat template, as models that
            were trained on chats want it; for tasks of one turn. A prediction then writes prompts as messages.
        best_of: `predict` samples so many replies to each prompt in place of `replies`, and keeps the one that is paid
            most, by `reward` if there is one.
        context: tokens that the policy can read; a prompt that leaves no room for a reply is refused at `setup`.
        seed, minibatches, passes, label_buffer: of `RolloutDataModule`.
    """

    recorded = "replies"  # the file that `records` go to

    def __init__(
        self,
        task: TextEnvironment,
        tokenizer: Tokenizer,
        replies: Size = 4,
        max_new: Size = 32,
        reward: Scorer | None = None,
        window: Size | None = None,
        top_k: Count = 0,
        top_p: PositiveShare = 1.0,
        evaluation_prompts: Size | None = 64,
        evaluation_replies: Size = 1,
        predict_split: Split = "test",
        prompt_suffix: str = "",
        stop: Sequence[str] = (),
        chat: bool = False,
        best_of: Size | None = None,
        context: Size | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        at_least_one(replies=replies, max_new=max_new, window=window, evaluation_replies=evaluation_replies)
        at_least_one(evaluation_prompts=evaluation_prompts, best_of=best_of)
        if window is not None and task.turns == 1:
            raise ValueError(f"window: got {window} for a task of one turn, which has nothing to leave out; drop it")
        if chat and task.turns > 1:
            raise ValueError(f"chat: for tasks of one turn; {type(task).__name__} has {task.turns}: leave it out")
        if top_k < 0:
            raise ValueError(f"top_k: got {top_k}, must be 0 (all tokens) or more")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p: got {top_p}, must be in (0, 1]")
        self.task, self.tokenizer, self.replies, self.reward = task, tokenizer, replies, reward
        self.evaluation_prompts, self.evaluation_replies = evaluation_prompts, evaluation_replies
        self.predict_split, self.context, self.best_of = predict_split, context, best_of
        self.conversation = Conversation(
            task, tokenizer, max_new, window, prompt_suffix, top_k, top_p, tuple(stop), chat
        )
        self.cases, self.shown = {}, []
        self._unanswered = 0  # prompts of a prediction to which all replies were empty, this rank's

    def setup(self, stage: str) -> None:
        """Raises ValueError: a prompt that cannot be encoded or has no room, two of one id, a `reward` of other ids, a
        text of `stop` that is not one token, `chat` without a template.
        """
        if self.cases:
            return
        self.tokenizer.fit(self.task.corpus())
        _ = self.conversation.stops  # before anything is played
        if self.conversation.chat and not self.tokenizer.has_template:
            raise ValueError(
                "chat: the tokenizer has no chat template: take a FolderTokenizer that has one, or leave chat out"
            )
        self.refuse_other_ids("reward", self.reward)
        splits: tuple[Split, ...] = ("train", "val", "test")
        self.cases = {split: self._prompts_of(split) for split in splits}

    def refuse_other_ids(self, name: str, model: object) -> None:
        """Raises ValueError: the model, which the knob `name` has brought, says that it reads other ids."""
        read = getattr(model, "tokenizer_digest", None)
        if read not in (None, self.tokenizer_digest):
            raise ValueError(
                f"{name}: it reads the ids of another tokenizer ({read[:12]}…) than the prompts are in "
                f"({self.tokenizer_digest[:12]}…): use the tokenizer that it was trained with, or another {name}"
            )

    def refuse_short_context(self, name: str, model: object, tokens: int) -> None:
        """Raises ValueError: the model, which the knob `name` has brought, says that it cannot read so many."""
        context = getattr(model, "context", None)
        if context is not None and tokens > context:
            raise ValueError(
                f"data.{name}: it can read {context} tokens, and a row has up to {tokens}, prompt and reply (max_new) "
                f"together: shorten prompts or max_new, or use another {name} with a larger context"
            )

    # ---- what a run is about

    @property
    def vocabulary(self) -> int:
        """Ids that a policy must have at least."""
        return self.tokenizer.size

    @property
    def longest_row(self) -> int:
        """Tokens that a row may have at least: of the longest prompt and a reply to it."""
        return max(len(prompt.ids) for split in self.cases.values() for prompt in split) + self.conversation.max_new

    @property
    def tokenizer_digest(self) -> str:
        return self.tokenizer.digest

    @property
    def data_digest(self) -> str:
        """SHA-256 of the ids and prompts of all splits, in their order."""
        content = [[split, prompt.case.id, prompt.case.prompt] for split in self.cases for prompt in self.cases[split]]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    # ---- prediction

    def predict_dataloader(self) -> list[DataLoader]:
        prompts = self._judged(self.predict_split)
        firsts = range(0, len(prompts), PREDICTED)
        copies = self.best_of or self.replies
        self._unanswered = 0

        def sampled() -> Iterator[Batch]:
            rng = self._rng(TEST, 2)
            for first in firsts:
                some = prompts[first : first + PREDICTED]
                with torch.no_grad():
                    episodes = self._play(self._actor, rng, some, copies, False)
                    batch = as_batch([self.conversation.dialogue(episode) for episode in episodes])
                    rewards = self._paid(batch)
                place = torch.arange(len(batch)) // copies + first
                batch = replace(batch, rewards=rewards, group=place)
                yield batch if self.best_of is None else batch[best_rows(row_sums(rewards, batch.valid), place)]

        return [loader(sampled, len(firsts))]

    def records(self, batch: Batch) -> list[dict[str, Any]]:
        """Each prompt of a predicted batch with its replies and what they earned: feedback to be completed.

        `meta` keeps the tokens, so that what learns from the file sees what was sampled, and the name of the `run`.
        Nothing can be said of an empty reply: `meta.empty` counts those that are left out. A prompt to which all are
        empty has no line, and behind the last batch a warning says to how many that happened.
        """
        assert batch.group is not None
        prompts = self._judged(self.predict_split)
        lines = replies_by_prompt(batch, prompts, self.conversation)
        for line in lines:  # a second round samples for the same ids
            line["meta"]["run"] = Path(self.trainer.default_root_dir).resolve().name
        answered = [line for line in lines if line["responses"]]
        self._unanswered += len(lines) - len(answered)
        if int(batch.group.max()) + 1 == len(prompts):
            counts = torch.tensor([self._unanswered, len(prompts)], dtype=torch.float64)
            left_out, of = self._sum_over_ranks(counts).tolist()
            if left_out:
                rank_zero_warn(
                    f"{left_out:.0f} of {of:.0f} prompts are not in {self.recorded}.jsonl: every reply to them was "
                    "empty, of which nothing can be said; raise replies, or train the policy to say something first"
                )
        return answered


def at_least_one(**amounts: int | None) -> None:
    """Raises ValueError naming the first that is not; None stands for no limit."""
    for name, amount in amounts.items():
        if amount is not None and amount < 1:
            raise ValueError(f"{name}: got {amount}, must be at least 1")
