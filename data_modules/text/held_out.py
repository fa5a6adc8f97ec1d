"""What a policy says to held-out prompts while it learns from rows that are already there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from data_modules.minibatches import TEST, VALIDATION
from data_modules.text.conversation import Conversation
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.evaluation import TextEvaluation
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.numbers import Count, Size


class HeldOutReplies(TextEvaluation):
    """Plays prompts of a task at every evaluation, where there is a task and the model is a policy.

    These are two loaders in front of the held-out rows, as those of `TextDataModule`: one greedy reply a prompt, and a
    sampled one. A reply has as many tokens as the longest that is learned from, if the longest prompt leaves room; a
    task of several turns is played as its demonstrations are, what was said last and a reply. Nothing is drawn that
    training draws, and nothing is counted.

    Args:
        tokenizer, task: of the child, which makes the tokenizer from the task's corpus.
        evaluation_prompts: of `val` and of `test`, from their first on; 0 plays none.
        context: tokens that the policy can read; without it prompt and reply get as many as the longest row.

    Raises:
        ValueError: fewer than no prompts; at `setup` a prompt that cannot be encoded or leaves no room for a reply.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        task: TextEnvironment | None = None,
        evaluation_prompts: Count = 32,
        context: Size | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if evaluation_prompts < 0:
            raise ValueError(f"evaluation_prompts: got {evaluation_prompts}, must be at least 0, which plays none")
        self.tokenizer, self.task, self.context = tokenizer, task, context
        self.evaluation_prompts = evaluation_prompts
        self.cases, self.shown = {}, []

    def set_up_replies(self, row: int, prompt: int, reply: int, suffix: str = "") -> None:
        """Behind the rows. Raises ValueError: as above.

        Args: row, prompt, reply: tokens of the longest that is learned from; suffix: text behind every prompt.
        """
        model = self.trainer and self.trainer.lightning_module  # without a Trainer, only rows are asked for
        if self.task is None or not self.evaluation_prompts or not hasattr(model, "reply"):
            return
        several = self.task.turns > 1
        self.conversation = Conversation(self.task, self.tokenizer, 1, 1 if several else None, suffix)
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

    @property
    def longest_played(self) -> int:
        """Tokens of the longest prompt and a reply to it; 0 where none is played."""
        return max(self._lengths) + self.conversation.max_new if self._lengths else 0

    @property
    def _lengths(self) -> list[int]:
        """Tokens of the prompts that are played."""
        return [len(each.ids) for found in self.cases.values() for each in found[: self.evaluation_prompts]]

    def played(self, split: Split) -> list[DataLoader]:
        """The loaders in front of the held-out rows; none where nothing is played."""
        if not self.cases.get(split):
            return []
        return self._evaluation_loaders(TEST if split == "test" else VALIDATION)
