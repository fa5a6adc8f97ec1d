"""What training changed: held-out prompts are answered before the first optimizer step, and again at the end."""

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

MODES: dict[Mode, bool] = {"greedy": True, "sampled": False}  # whether the policy's mode is played
SHOWN = 100  # prompts on the page
T = TypeVar("T")


class ComparedWithStart(MinibatchDataModule):
    """Keeps what a policy says to the prompts of `val` before its first optimizer step, for a resumed fit too.

    Nothing is drawn that training draws: a fit with it learns the same as one without. A child plays (`replied`).
    """

    compare_start = True
    conversation: Conversation
    cases: dict[Split, list[Prompt]]
    last_replies: ReplySet  # of this rank's last `replied`

    @cached_property
    def changes(self) -> StartReplies:
        """The start's replies and those of the last evaluation, over all ranks."""
        return StartReplies()

    def replied(
        self, actor: Actor, rng: np.random.Generator, deterministic: bool
    ) -> tuple[list[Episode], list[float | None], Batch, Tensor]:
        """This rank's episodes of an evaluation, what each earned, their rows, and the episode of each row, (B,).

        It leaves `last_replies`.
        """
        raise NotImplementedError

    @property
    def _compares(self) -> bool:
        """Whether this is a fit that has an evaluation with prompts."""
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

    def _of_all_ranks(self, own: T) -> list[T]:
        every: list[Any] = [own]
        if self._world_size > 1:
            every *= self._world_size
            torch.distributed.all_gather_object(every, own)
        return every

    # ---- within a fit

    def iteration(self) -> Iterator[Batch]:
        if self._compares and self.trainer.global_step == 0 and len(self.changes.start) < len(MODES):
            self._play_now()
        yield from super().iteration()

    def final_metrics(self, iteration: int | None = None) -> dict[str, float]:
        """`figures` of the greedy replies, and with `…_sampled` of the sampled; nothing without a start.

        Args: iteration: whose weights the policy has meanwhile; None where they are the last.
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
            if name != "length"  # that every evaluation logs
        }

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        if stage == "fit":  # another fit has another start
            self.__dict__.pop("changes", None)

    # ---- checkpoint

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"start": self.changes.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.trainer.state.fn == "fit":
            self.changes.load_state_dict(state_dict.get("start", {}))  # earlier checkpoints have none

    # ---- exhibits

    def exhibits(self, folder: Path) -> list[Path]:
        """`changed.html` and `.md` to read, and `changed.jsonl`, a feedback file, to have compared by somebody."""
        pairs = {mode: self.changes.pairs(mode, self.cases.get("val", ())) for mode in MODES}
        if not any(pairs.values()):
            return super().exhibits(folder)
        run = Path(self.trainer.default_root_dir).resolve().name
        titles = {"greedy": "Greedy: the likeliest token each time", "sampled": "Sampled, both with the same seeds"}
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
