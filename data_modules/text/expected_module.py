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
    """Supervised fine-tuning on the expected responses of a task.

    With the same `prompts` and `order` as a run with `ExpectedResponses`, the training responses are the same.

    Args:
        task: text task that provides `expected` responses to imitate, and prompts to evaluate on. All expected
            responses of `val` and `test` are held out.
        tokenizer: tokenizer of the model. A new one is built from the task's corpus.
        prompts: number of training prompts with an expected response; None = all.
        order: seed for choosing these prompts; nothing else changes the choice.
        rows, context, evaluation_prompts, chat, reward, seed, minibatches, passes, rows_per_batch,
            tokens_per_batch: see `ImitationDataModule`.
    """

    def __init__(
        self,
        task: TextEnvironment,
        tokenizer: Tokenizer | None = None,
        prompts: Size | None = None,
        order: Seed = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer=tokenizer, task=task, **kwargs)
        at_least(1, prompts=prompts)
        self.source, self.prompts, self.order = task, prompts, order

    def texts(self, split: Split) -> Iterator[tuple[PromptText, str, str]]:
        """The expected responses of a split.  Raises ValueError: the task has fewer than `prompts` to train on."""
        if split == "train":
            responses = with_expected(self.source, self.prompts, self.order)
        else:
            responses = all_expected(self.source, split)
        for case, text in responses:
            yield case.prompt, text, f"expected response to {split} case {case.id!r}"
