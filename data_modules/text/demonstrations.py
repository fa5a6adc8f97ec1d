"""Demonstrations from a task or from files, for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_modules.judgements.files import read
from data_modules.judgements.schema import PromptText
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.imitation_module import ImitationDataModule
from data_modules.text.tokenizer import Tokenizer


class DemonstrationsDataModule(ImitationDataModule):
    """Supervised fine-tuning on demonstrations from a task, from files, or from both.

    Args:
        tokenizer: tokenizer of the model. A new one is built from the task's corpus, or from the training file if there
            is no task.
        task: text task that provides `demonstrations` to imitate and prompts to evaluate on.
        path, val_path, test_path: JSON lines with `prompt` (text or messages) and `expected`, as in feedback files.
            These lines are added to the task's demonstrations of the same split.
        rows, context, evaluation_prompts, chat, reward, seed, minibatches, passes, rows_per_batch,
            tokens_per_batch: see `ImitationDataModule`.

    Raises:
        ValueError: neither a task nor a file is given; or at `setup`, a line is malformed, a word is unknown or a row
            is too long. The message gives file, line and what to do.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        task: TextEnvironment | None = None,
        path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, task, **kwargs)
        if task is None and path is None:
            raise ValueError("path: there is no training data; give a file of demonstrations, or a task")
        self.paths: dict[Split, str | None] = {"train": path, "val": val_path, "test": test_path}

    def texts(self, split: Split) -> Iterator[tuple[PromptText, str, str]]:
        """The demonstrations of a split.  Raises ValueError: there is nothing to train on."""
        path = self.paths[split]
        demonstrations = [] if self.task is None else self.task.demonstrations(split)
        if split == "train" and not demonstrations and path is None:
            raise ValueError("task: it has no demonstrations to train on; give a path")
        for number, (text, reply) in enumerate(demonstrations):
            yield text, reply, f"{split} demonstration {number} of the task"
        for line in [] if path is None else read(path):
            if line.expected is None:
                raise ValueError(f"{line.where}: expected: is missing; a demonstration needs the reply to imitate")
            yield line.prompt, line.expected, line.where
