"""Replies before and after training, from the policy to the same held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from data_modules.judgements.files import write
from data_modules.judgements.parsing import parse
from data_modules.minibatches import VALIDATION, MinibatchDataModule
from data_modules.text.changed_page import Compared, Section, write_pages
from data_modules.text.conversation import Conversation
from data_modules.text.environment import Split
from data_modules.text.episode import Episode, Prompt
from data_modules.text.start_replies import Mode, Reply, ReplySet, StartReplies, feedback_lines, figures
from lightning_nlf.batch import Actor, Batch

MODES: dict[Mode, bool] = {"greedy": True, "sampled": False}  # mode → whether decoding is deterministic
SHOWN = 100  # maximum number of prompts on the page
T = TypeVar("T")


class ComparedWithStart(MinibatchDataModule):
    """Compare the policy's replies to the `val` prompts with its replies before the first optimizer step (the start).

    The replies of the start are kept in checkpoints, so that a resumed fit compares with the same start. The comparison
    has its own random numbers, so training draws the same numbers with and without the comparison. Subclasses implement
    `replied`.
    """

    compare_start = True
    conversation: Conversation
    cases: dict[Split, list[Prompt]]
    last_replies: ReplySet  # this rank's replies from the last call of `replied`

    @cached_property
    def changes(self) -> StartReplies:
        """The replies of the start and of the last evaluation, from all ranks."""
        return StartReplies()

    def replied(
        self, actor: Actor, rng: np.random.Generator, deterministic: bool
    ) -> tuple[list[Episode], list[float | None], Batch, Tensor]:
        """Play one evaluation on this rank, and store the replies in `last_replies`.

        Returns: the episodes, the score of each episode, the rows of all episodes, and the index of each row's episode,
            (B,).
        """
        raise NotImplementedError

    @property
    def _compares(self) -> bool:
        """Whether the Trainer is fitting, with validation, and the task has `val` prompts."""
        if not self.compare_start or not self.cases.get("val"):
            return False
        trainer = self.trainer
        fits = trainer.state.fn == "fit" and not trainer.fast_dev_run  # type: ignore[attr-defined]
        return fits and bool(trainer.limit_val_batches)

    def evaluated(self, deterministic: bool) -> None:
        if self._compares:
            parts = self._of_all_ranks(self.last_replies)
            replies: ReplySet = {id: replied for part in parts for id, replied in part.items()}
            mode: Mode = "greedy" if deterministic else "sampled"
            self.changes.remember(mode, replies, self.trainer.global_step, self.counters["iteration"])

    def _play_now(self) -> None:
        for deterministic in MODES.values():
            with self._apart(VALIDATION, deterministic) as rng:
                self.replied(self._actor, rng, deterministic)
                self.evaluated(deterministic)

    def _of_all_ranks(self, local: T) -> list[T]:
        every: list[Any] = [local]
        if self._world_size > 1:
            every *= self._world_size
            torch.distributed.all_gather_object(every, local)
        return every

    # ---- within a fit

    def iteration(self) -> Iterator[Batch]:
        if self._compares and self.trainer.global_step == 0 and len(self.changes.start) < len(MODES):
            self._play_now()
        yield from super().iteration()

    def final_metrics(self, iteration: int | None = None) -> dict[str, float]:
        """`figures` of greedy replies, and of sampled replies with the suffix `_sampled`; empty without a start.

        Args: iteration: the iteration whose weights the policy has now; None = the last one.
        """
        if not self._compares or not self.changes.start:
            return {}
        now = self.counters["iteration"] if iteration is None else iteration
        if self.changes.step != self.trainer.global_step or self.changes.iteration != now:
            self._play_now()
            self.changes.iteration = now
        values = {mode: figures(self.changes.pairs(mode, self.cases["val"])) for mode in MODES}
        how = {"greedy": "", "sampled": "_sampled"}
        return {
            f"val/{name}{how[mode]}": value
            for mode in MODES
            for name, value in values[mode].items()
            if name != "length"  # every evaluation logs the length
        }

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        if stage == "fit":  # the next fit has its own start
            self.__dict__.pop("changes", None)

    # ---- checkpoint

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"start": self.changes.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.trainer.state.fn == "fit":
            self.changes.load_state_dict(state_dict.get("start", {}))  # old checkpoints lack the start

    # ---- exhibits

    def exhibits(self, folder: Path) -> list[Path]:
        """Write the pages `changed.html` and `changed.md`, and `changed.jsonl`, a feedback file for annotators."""
        pairs = {mode: self.changes.pairs(mode, self.cases.get("val", ())) for mode in MODES}
        if not any(pairs.values()):
            return super().exhibits(folder)
        run = Path(self.trainer.default_root_dir).resolve().name
        titles = {
            "greedy": "Greedy: the most likely token at each step",
            "sampled": "Sampled, both with the same seeds",
        }
        sections = [self._section(titles[mode], pairs[mode]) for mode in MODES if pairs[mode]]
        paths = write_pages(sections, run, self.changes.iteration, folder)
        format = replace(self.conversation.format, suffix="")
        lines = feedback_lines(pairs["greedy"], format, self.conversation.tokenizer.digest, run)
        if lines:
            write(folder / "changed.jsonl", [parse(line) for line in lines])
            paths.append(folder / "changed.jsonl")
        return [*super().exhibits(folder), *paths]

    def _section(self, title: str, pairs: Sequence[tuple[Prompt, Reply, Reply]]) -> Section:
        expected = self.conversation.task.expected
        rows = []
        for prompt, start, policy in pairs[:SHOWN]:
            scores = None if start.score is None or policy.score is None else (start.score, policy.score)
            case = prompt.case
            rows.append(Compared(case.text, start.marked, policy.marked, scores, expected(case)))
        return Section(title, figures(pairs), rows, max(len(pairs) - SHOWN, 0))
