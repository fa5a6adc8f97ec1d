"""Demonstrations of a task and of files, for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_modules.judgements.files import read
from data_modules.judgements.schema import PromptText
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.imitation_module import ImitationDataModule
from data_modules.text.tokenizer import Tokenizer


class DemonstrationsDataModule(ImitationDataModule):
    """Demonstrations of a task, of files, or of both, as rows that are imitated and nothing else.

    Args:
        tokenizer: made from the task's corpus, or without a task from the training file's texts.
        task: whose `demonstrations` are taken, and whose prompts are played.
        path, val_path, test_path: JSON lines with `prompt` (text or messages) and `expected`, as feedback files have
            them; they come on top of the task's demonstrations of the same split.
        rows, context, evaluation_prompts, chat, reward, seed, minibatches, passes, rows_per_batch,
            tokens_per_batch: of `ImitationDataModule`.

    Raises:
        ValueError: there is neither a task nor a file; at `setup` a line that is wrong, an unknown word, a row that is
            too long, with file, line and what to do.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        task: TextEnvironment | None = None,
        path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, task, **kwargs)
        if task is None and path is None:
            raise ValueError("path: there is nothing to learn from; give a file of demonstrations, or a task")
        self.paths: dict[Split, str | None] = {"train": path, "val": val_path, "test": test_path}

    def texts(self, split: Split) -> Iterator[tuple[PromptText, str, str]]:
        """Raises ValueError: there is none to train on."""
        path = self.paths[split]
        given = [] if self.task is None else self.task.demonstrations(split)
        if split == "train" and not given and path is None:
            raise ValueError("task: it has no demonstrations to train on, and there is no path")
        for number, (text, reply) in enumerate(given):
            yield text, reply, f"{split} demonstration {number} of the task"
        for line in [] if path is None else read(path):
            if line.expected is None:
                raise ValueError(f"{line.where}: expected: is missing; a demonstration is what should be said")
            yield line.prompt, line.expected, line.where
