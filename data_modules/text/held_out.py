"""What a policy says to held-out prompts while it learns from rows that are already there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from data_modules.minibatches import TEST, VALIDATION
from data_modules.ranges import sampling
from data_modules.text.checks import refuse_other_ids, refuse_short_context
from data_modules.text.conversation import Conversation
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.evaluation import TextEvaluation
from data_modules.text.held_out_prompts import HeldOutLine, HeldOutPrompts, with_room
from data_modules.text.prompts import Chat, PromptFormat
from data_modules.text.reply_judge import ReplyJudge
from data_modules.text.speech import Speech, speech
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.batch import Sampling, Scorer
from lightning_nlf.numbers import Count, Positive, PositiveShare, Size


class HeldOutReplies(TextEvaluation):
    """Plays prompts of a task at every evaluation, or those of held-out lines, where the model is a policy.

    These are two loaders in front of the held-out rows, as those of `TextDataModule`: one greedy reply a prompt, and a
    sampled one. A reply has as many tokens as the longest that is learned from, if the longest prompt leaves room; a
    task of several turns is played as its demonstrations are, what was said last and a reply. Without a task there
    is no rule, and prompts that leave no room for the longest reply are not played. Nothing is drawn that training
    draws, and nothing is counted. Before training they are played once, for the page that compares
    (`ComparedWithStart`).

    Args:
        tokenizer, task: of the child, which makes the tokenizer from the task's corpus.
        evaluation_prompts: of `val` and of `test`, from their first on; 0 plays none.
        context: tokens that the policy can read; without it prompt and reply get as many as the longest row.
        chat: prompts go through the tokenizer's chat template, with a system message if wanted; by default where it
            has one.
        top_k, top_p, temperature: of the sampled reply; the policy and its own temperature stay as they are.
        reward: who scores these replies, such as a reward model or a judge, in place of the task's rule; nothing is
            learned from that.

    Raises:
        ValueError: fewer than no prompts; at `setup` a prompt that cannot be encoded or leaves no room for a reply, or
            a reward model that reads other ids, or not as many.
    """

    suffix = ""  # text behind every prompt that is replied to

    def __init__(
        self,
        tokenizer: Tokenizer,
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
            raise ValueError(f"evaluation_prompts: got {evaluation_prompts}, must be at least 0, which plays none")
        self.tokenizer, self.task, self.context = tokenizer, task, context
        self.format = PromptFormat(tokenizer, chat)
        self.evaluation_prompts, self.reward = evaluation_prompts, reward
        sampling(top_k, top_p, temperature)
        self.sampling: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "temperature": temperature}
        self.cases, self.shown = {}, []

    def set_up_replies(
        self, row: int, prompt: int, reply: int, held_out: Mapping[Split, Sequence[HeldOutLine]]
    ) -> None:
        """Behind the rows. Raises ValueError: as above.

        Args:
            row, prompt, reply: tokens of the longest that is learned from.
            held_out: lines that are played where there is no task.
        """
        model = self.trainer and self.trainer.lightning_module  # without a Trainer, only rows are asked for
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
            raise ValueError(f"evaluation_prompts: {error}; 0 plays none") from None
        longest = max(self._lengths, default=0)
        room = (self.context or row) - max(longest, prompt if several else 0)
        if room < 1:
            raise ValueError(
                f"evaluation_prompts: held-out prompts have up to {longest} tokens, and all that is learned from up to "
                f"{row}, so there is no room for a reply: say the policy's `context`, or 0, which plays none"
            )
        self.conversation = replace(self.conversation, max_new=min(reply, room))
        if isinstance(self.reward, ReplyJudge):
            self.reward.check([prompt.case for split in splits for prompt in self.cases[split]])
        refuse_other_ids("reward", self.reward, self.tokenizer.digest)
        refuse_short_context("reward", self.reward, self.longest_played)

    @property
    def _format(self) -> PromptFormat:
        """Of prompts that the model replies to."""
        return replace(self.format, suffix=self.suffix)

    def speech(self, system: str | None = None) -> Speech:
        """How to talk with the model.  Raises ValueError: a system message without a chat template."""
        if not self.tokenizer.ready:
            self.setup("predict")
        return speech(self._format, (self.tokenizer.eos,), system)

    @property
    def longest_played(self) -> int:
        """Tokens of the longest prompt and a reply to it; 0 where none is played."""
        return max(self._lengths) + self.conversation.max_new if self._lengths else 0

    @property
    def _lengths(self) -> list[int]:
        """Tokens of the prompts that are played."""
        return [len(each.ids) for found in self.cases.values() for each in found[: self.evaluation_prompts]]

    @property
    def validation(self) -> Sampling:
        """What one validation samples: a greedy reply and a sampled one to each prompt."""
        lengths = [len(prompt.ids) for prompt in self.cases.get("val", [])[: self.evaluation_prompts]]
        return Sampling(sum(lengths), len(lengths) * self.conversation.max_new) * 2 if lengths else Sampling()

    def played(self, split: Split) -> list[DataLoader]:
        """The loaders in front of the held-out rows; none where nothing is played."""
        if not self.cases.get(split):
            return []
        return self._evaluation_loaders(TEST if split == "test" else VALIDATION)
