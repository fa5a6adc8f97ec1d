"""Expected responses as demonstrations, for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_modules.judgements.schema import PromptText
from data_modules.ranges import at_least
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.expected import all_expected, with_expected
from data_modules.text.imitation_module import ImitationDataModule
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.numbers import Seed, Size


class ExpectedDataModule(ImitationDataModule):
    """The expected responses of a task as demonstrations: supervised fine-tuning on those that a joint run or an
    injection of the same `prompts` and `order` has.

    Args:
        task: whose `expected` is taken, and whose prompts are played; held out are those of all prompts of `val` and
            `test`.
        tokenizer: made from the task's corpus.
        prompts: training prompts that have one; None = all.
        order: a seed; it alone decides which prompts these are.
        rows, context, evaluation_prompts, chat, reward, seed, minibatches, passes, rows_per_batch,
            tokens_per_batch: of `ImitationDataModule`.
    """

    def __init__(
        self, task: TextEnvironment, tokenizer: Tokenizer, prompts: Size | None = None, order: Seed = 0, **kwargs: Any
    ) -> None:
        super().__init__(tokenizer=tokenizer, task=task, **kwargs)
        at_least(1, prompts=prompts)
        self.source, self.prompts, self.order = task, prompts, order

    def texts(self, split: Split) -> Iterator[tuple[PromptText, str, str]]:
        """Raises ValueError: the task has not so many to train on."""
        if split == "train":
            responses = with_expected(self.source, self.prompts, self.order)
        else:
            responses = all_expected(self.source, split)
        for case, text in responses:
            yield case.prompt, text, f"expected response to {split} case {case.id!r}"
