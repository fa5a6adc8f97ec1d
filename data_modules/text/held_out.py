"""Replies of a policy to held-out prompts, for DataModules that train on a fixed set of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from data_modules.minibatches import TEST, VALIDATION
from data_modules.ranges import sampling
from data_modules.text.checks import refuse_other_ids, refuse_short_context
from data_modules.text.conversation import Conversation
from data_modules.text.environment import Split, TextEnvironment, context_of
from data_modules.text.evaluation import TextEvaluation
from data_modules.text.held_out_prompts import HeldOutLine, HeldOutPrompts, with_room
from data_modules.text.prompts import Chat, PromptFormat
from data_modules.text.reply_judge import ReplyJudge
from data_modules.text.speech import Speech, speech
from data_modules.text.tokenizer import Tokenizer, WordTokenizer
from lightning_nlf.batch import Sampling, Scorer
from lightning_nlf.numbers import Count, Positive, PositiveShare, Size


class HeldOutReplies(TextEvaluation):
    """Sample replies to held-out prompts at every evaluation, if the model is a policy.

    The prompts come from a task, or from held-out lines of a file. Two loaders come before the loader of held-out rows,
    as in `TextDataModule`: one with a greedy reply to each prompt, and one with a sampled reply. A reply may have as
    many tokens as the longest training reply, if the longest prompt leaves room. In a task of several turns a prompt is
    the environment's last text, as in the demonstrations. Without a task no rule scores replies, and prompts that leave
    no room for the longest reply are skipped. The evaluation changes neither the random numbers nor the counters of
    training. One evaluation before training samples the replies to compare with (`ComparedWithStart`).

    Args:
        tokenizer, task: set by the subclass, which builds the tokenizer from the task's corpus if needed. By default
            the tokenizer is the one in the model's folder, or a `WordTokenizer` if the model has none.
        evaluation_prompts: use only the first so many prompts of `val` and of `test`; 0 = no replies.
        context: number of tokens that the policy can read; by default the `context` of a task that is `Sized`, else the
            longest row.
        chat: use the tokenizer's chat template for prompts, with a system message if given. By default the template is
            used if the tokenizer has one.
        top_k, top_p, temperature: sampling settings for the sampled reply. The policy and its own temperature do not
            change.
        reward: reward model or judge that scores the replies in place of the task's rule; used only for evaluation.

    Raises:
        ValueError: evaluation_prompts is negative; or at `setup`, a prompt cannot be encoded or leaves no room for a
            reply, or a reward model has a different tokenizer or too short a context.
    """

    rows_are_given = True
    suffix = ""  # text added to the end of every prompt

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        task: TextEnvironment | None = None,
        evaluation_prompts: Count = 32,
        context: Size | None = None,
        chat: bool | Chat | None = None,
        top_k: Count = 0,
        top_p: PositiveShare = 1.0,
        temperature: Positive = 1.0,
        reward: Scorer | ReplyJudge | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if evaluation_prompts < 0:
            raise ValueError(f"evaluation_prompts: got {evaluation_prompts}, must be at least 0 (0 turns replies off)")
        self.tokenizer, self.task, self.context = tokenizer or WordTokenizer(), task, context or context_of(task)
        self.format = PromptFormat(self.tokenizer, chat)
        self.evaluation_prompts, self.reward = evaluation_prompts, reward
        sampling(top_k, top_p, temperature)
        self.sampling: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "temperature": temperature}
        self.cases, self.transcript_rows = {}, []

    def corpus_ahead(self) -> Iterable[str] | None:
        return None if self.task is None else self.task.corpus()

    def set_up_replies(
        self, row: int, prompt: int, reply: int, held_out: Mapping[Split, Sequence[HeldOutLine]]
    ) -> None:
        """Prepare the evaluation prompts, once the training rows are ready.  Raises ValueError: see the class.

        Args:
            row, prompt, reply: number of tokens in the longest row, prompt and reply of training.
            held_out: lines whose prompts are used if there is no task.
        """
        model = self.trainer and self.trainer.lightning_module  # without a Trainer there is no policy to reply
        if not self.evaluation_prompts or not hasattr(model, "reply"):
            return
        task = self.task
        if task is None:
            room = self.context or row
            task = HeldOutPrompts({split: with_room(held_out[split], self._format, reply, room) for split in held_out})
        several = task.turns > 1
        window = 1 if several else None
        self.conversation = Conversation(
            task, self.tokenizer, 1, window, self.suffix, chat=self.format.chat, **self.sampling
        )
        splits: tuple[Split, ...] = ("val", "test")
        try:
            self.cases = {split: self._prompts_of(split) for split in splits}
        except ValueError as error:
            raise ValueError(f"evaluation_prompts: {error}; 0 turns replies off") from None
        longest = max(self._lengths, default=0)
        room = (self.context or row) - max(longest, prompt if several else 0)
        if room < 1:
            raise ValueError(
                f"evaluation_prompts: held-out prompts have up to {longest} tokens and training rows up to {row}, so "
                "there is no room for a reply: give the policy's `context`, or 0 to turn replies off"
            )
        self.conversation = replace(self.conversation, max_new=min(reply, room))
        if isinstance(self.reward, ReplyJudge):
            self.reward.check([prompt.case for split in splits for prompt in self.cases[split]])
        refuse_other_ids("reward", self.reward, self.tokenizer.digest)
        refuse_short_context("reward", self.reward, self.longest_played)

    @property
    def _format(self) -> PromptFormat:
        """The format of prompts that the model replies to."""
        return replace(self.format, suffix=self.suffix)

    def speech(self, system: str | None = None) -> Speech:
        """The settings for a chat with the model.  Raises ValueError: `system` is given without a chat template."""
        if not self.tokenizer.ready:
            self.setup("predict")
        return speech(self._format, (self.tokenizer.eos,), system)

    @property
    def longest_played(self) -> int:
        """Number of tokens in the longest prompt with its reply; 0 without prompts."""
        return max(self._lengths) + self.conversation.max_new if self._lengths else 0

    @property
    def _lengths(self) -> list[int]:
        """Number of tokens in each prompt."""
        return [len(prompt.ids) for prompts in self.cases.values() for prompt in prompts[: self.evaluation_prompts]]

    @property
    def validation(self) -> Sampling:
        """The amount of sampling in one validation: a greedy and a sampled reply to each prompt."""
        lengths = [len(prompt.ids) for prompt in self.cases.get("val", [])[: self.evaluation_prompts]]
        return Sampling(sum(lengths), len(lengths) * self.conversation.max_new) * 2 if lengths else Sampling()

    def reply_loaders(self, split: Split) -> list[DataLoader]:
        """The loaders of replies, which come before the loader of held-out rows; an empty list without prompts."""
        if not self.cases.get(split):
            return []
        return self._evaluation_loaders(TEST if split == "test" else VALIDATION)
