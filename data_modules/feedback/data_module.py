"""Trains on what was said of replies that are there: scores, critiques, rankings, expected responses, steps."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from data_modules.feedback.encoding import calls, encoded, knowing, rows_of, tell
from data_modules.feedback.rows import Layout, Use
from data_modules.feedback.selection import Keep, refuse_overlap, split
from data_modules.groups import grouped
from data_modules.judgements.fields import Scale
from data_modules.judgements.files import read_all
from data_modules.judgements.schema import Judgement
from data_modules.minibatches import loader
from data_modules.text.checks import context_of_model
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.held_out import HeldOutReplies
from data_modules.text.held_out_prompts import HeldOutLine
from data_modules.text.templates import refuse_template
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.wording import Wording
from lightning_nlf.batch import Actor, Batch, Workload
from lightning_nlf.numbers import BelowOne, Number, Size

Paths = str | list[str]
EVALUATED = 64  # rows of a held-out batch, about


class FeedbackDataModule(HeldOutReplies):
    """Rows of feedback files, in one layout whatever an objective makes of them; a line is a `group`.

    A reply with a score or a rank is a row with `mask` True on its tokens, one with nothing but labelled steps is True
    at their ends, and an expected response has `expert_mask` True. What is not known of a row is masked, field by
    field, so lines of any completeness train together: `rank` −1; `score` NaN and False in `extra["scored"]`;
    `extra["preference"]` NaN. A critique is a row that is imitated too, True in `extra["critique"]`.
    A score is the reward at the last token; labels of steps are rewards at their ends instead, `extra["step_ends"]`.
    `meta.finished` of a line says false of a reply that was cut off, which gets no stop token: `extra["finished"]`.
    Held-out rows are the same, without rewards for scores: nothing was earned in an evaluation. Beside them a task's
    prompts are played where the model is a policy.

    Args:
        path: of one file or of several. A judgement stands in one of them: the same id, replies and source twice are
            refused, unless `meta.run` says that another run sampled them.
        tokenizer: that of the model: of a folder, or made from the task's corpus, or without a task from the files.
        use: what is learned from. Objectives that know no mask for what is missing want only what they need:
            `[score]` for those of rewards, `[steps]` for process rewards. `critique` predicts what is said of a reply
            behind `critique_prompt`. `responses` adds the replies of which nothing else is known, to be compared with
            the expected one.
        keep: which scored replies are imitated, as the expected ones are: rejection sampling. With
            `use: [expected]` nothing else is learned from.
        control_codes: texts, the code of the worst replies first: each scored reply is imitated (`keep` may choose)
            behind a prompt that ends with the code of its score, an expected one behind the best code. At test time
            the prompt ends with the last of them.
        val_share: of the prompts, held out; none of their lines is learned from.
        val_path, test_path: files of held-out prompts. Without a test_path the test is on the validation's.
        scale: lowest and highest score there is in the files.
        on_bad: `skip` goes on without lines that are wrong, or that the tokenizer cannot encode, and warns which.
        context: tokens that the model can read, by default what it says itself; a longer row is refused, never cut.
        critique_prompt: what stands before a critique: the sentences of a `Wording`, in turns of a chat, or a text with
            the places `{prompt}` and `{response}`, into which the last message of a chat is put. By default `Wording`
            where prompts go through a chat template, else one line of text.
        expected_score: what an expected response earns, such as the best there is: then an objective of injection
            learns from it as one more reply of its group. Without, it is imitated only, and injection refuses it.
        task: whose corpus the tokenizer is made from, if it is not made yet, and whose prompts are played; without it
            the held-out ones are.
        evaluation_prompts, chat, reward: of `HeldOutReplies`.
        seed, minibatches, passes, rows_per_batch, tokens_per_batch: of `MinibatchDataModule`.

    Raises:
        ValueError: a knob, or at `setup` a line, that is wrong; names it and the mend.
    """

    def __init__(
        self,
        path: Paths,
        tokenizer: Tokenizer,
        use: tuple[Use, ...] = ("score", "ranking", "preference", "steps", "expected"),
        keep: Keep | None = None,
        control_codes: tuple[str, ...] = (),
        val_share: BelowOne = 0.0,
        val_path: Paths | None = None,
        test_path: Paths | None = None,
        scale: Scale = (0.0, 1.0),
        on_bad: Literal["raise", "skip"] = "raise",
        context: Size | None = None,
        critique_prompt: str | Wording | None = None,
        expected_score: Number | None = None,
        task: TextEnvironment | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, task, context=context, **kwargs)
        if not 0 <= val_share < 1:
            raise ValueError(f"val_share: got {val_share}, must be in [0, 1)")
        if val_share and val_path is not None:
            raise ValueError("val_share: the held-out prompts are those of val_path; leave one of them out")
        if len(set(control_codes)) < len(control_codes) or len(control_codes) == 1 or "" in control_codes:
            raise ValueError(f"control_codes: got {list(control_codes)}, must be two or more different texts")
        if isinstance(critique_prompt, str):
            refuse_template("critique_prompt", critique_prompt, ("prompt", "response"))
        if expected_score is not None and ("expected" not in use or not scale[0] <= expected_score <= scale[1]):
            raise ValueError(f"expected_score: got {expected_score}; it must be on the scale, and `use` name expected")
        self.paths, self.val_paths, self.test_paths = _listed(path), _listed(val_path), _listed(test_path)
        self.scale, self.on_bad, self.val_share = scale, on_bad, val_share
        codes = tuple(control_codes)
        self.suffix = codes[-1] if codes else ""
        self.layout = Layout(self.format, tuple(use), (), keep, codes, context, critique_prompt, expected_score)
        self.counters["feedback_calls"] = 0
        self.rows: Batch | None = None
        self.held_out: dict[str, Batch] = {}  # of "val" and "test"
        self._spent = 0  # calls of the teacher for what is learned from

    # ---- from files to rows

    def setup(self, stage: str) -> None:
        if self.rows is not None:
            return
        found, val, test = (
            read_all(paths, self.scale, self.on_bad) for paths in (self.paths, self.val_paths, self.test_paths)
        )
        training, validation = split(found, self.val_share)
        held = {"val": validation or val, "test": test}
        for name, judgements in held.items():
            refuse_overlap(training, judgements, f"{name}_path")
        if not self.tokenizer.ready:
            texts = (text for judgement in training for text in self.layout.texts(judgement))
            self.tokenizer.fit(texts if self.task is None else self.task.corpus())
        if self.layout.context is None:
            self.layout = replace(self.layout, context=context_of_model(self.trainer))
        self.layout = knowing(self.layout, training, self.paths)
        kept, groups = encoded(self.layout, training, self.on_bad)
        if len(kept) < len(training):  # what is skipped decides no threshold
            training, self.layout = kept, knowing(self.layout, kept, self.paths)
            groups = [self.layout.rows(judgement) for judgement in training]
        self.rows = rows_of(self.layout, training, groups, self.paths)
        for name, judgements in held.items():
            if judgements:
                names = self.test_paths if name == "test" else self.val_paths or self.paths
                rows = rows_of(self.layout, *encoded(self.layout, judgements, self.on_bad), names)
                self.held_out[name] = rows if "step_ends" in rows.extra else replace(rows, rewards=None)
        replies = self.rows.valid.sum(1)
        prompts = self.rows.valid.int().argmax(1) + 1
        played: dict[Split, list[Judgement]] = {"val": held["val"], "test": held["test"] or held["val"]}
        lines = {split: [_held_out_line(judgement) for judgement in found] for split, found in played.items()}
        self.set_up_replies(self._longest_judged, int(prompts.max()), int(replies.max()), lines)
        self._spent = sum(calls(judgement, self.layout.use) for judgement in training)
        tell(training, self.rows, self.layout.use, sum(map(len, held.values())))
        _ = self.data_digest  # before anybody writes to the files

    # ---- training

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        assert self.rows is not None, "setup comes first"
        places, groups = grouped(self.rows)
        self.refuse_too_few("path", groups, "judgements")
        if not self.counters["feedback_calls"]:  # said once, however often it is read
            self.counters["feedback_calls"] = self._spent
        return self.rows[places % self._world_size == self.trainer.global_rank]

    # ---- evaluation

    def val_dataloader(self) -> list[DataLoader]:
        return self._evaluation("val")

    def test_dataloader(self) -> list[DataLoader]:
        return self._evaluation("test")

    def _evaluation(self, split: Split) -> list[DataLoader]:
        """One loader of held-out rows, as many batches on every rank, if there are any, behind what is played."""
        name = split if split in self.held_out else "val"
        if name not in self.held_out:
            return self.played(split)
        rows = self.held_out[name]
        places, groups = grouped(rows)
        if groups < self._world_size:
            raise ValueError(f"{name}: {groups} prompts are held out, and there are {self._world_size} processes")
        parts = min(-(-len(rows) // (EVALUATED * self._world_size)), groups // self._world_size)
        own = torch.arange(self.trainer.global_rank, groups, self._world_size).tensor_split(parts)
        masks = [torch.isin(places, part) for part in own]
        return [*self.played(split), loader(partial(map, rows.__getitem__, masks), parts)]

    # ---- what a run was made of

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row or episode, prompt and reply."""
        return max(self._longest_judged, self.longest_played)

    @property
    def workload(self) -> Workload:
        assert self.rows is not None
        unread = self.rows.valid.flip(1).int().argmax(1)  # behind the last that is judged
        tokens = int((self.rows.valid.shape[1] - unread).sum())
        return Workload(len(self.rows), tokens, self.passes, evaluation=self.validation)

    @property
    def _longest_judged(self) -> int:
        rows = [self.rows, *self.held_out.values()]
        return max(batch.obs.shape[1] for batch in rows if batch is not None) + 1  # the last is in `final_obs`

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of the files' content at `setup`, one after the other: of a single file that of `sha256sum`."""
        total = hashlib.sha256()
        for path in self.paths + self.val_paths + self.test_paths:
            total.update(Path(path).read_bytes())
        return total.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"data": self.data_digest, "tokenizer": self.tokenizer.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError: the tokenizer is another than the run's, or, where it would go on, the files are."""
        super().load_state_dict(state_dict)
        if state_dict["tokenizer"] != self.tokenizer.digest:
            raise ValueError("tokenizer: it is another than that of the checkpoint; its ids would mean other texts")
        if self.trainer.state.fn == "fit" and state_dict["data"] != self.data_digest:
            raise ValueError("path: the files have changed since the run began; begin a new one from its weights")


def _held_out_line(judgement: Judgement) -> HeldOutLine:
    facts = judgement.meta.get("facts")
    return HeldOutLine(judgement.prompt, judgement.expected, judgement.id, facts if isinstance(facts, dict) else {})


def _listed(paths: Paths | None) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths or ())
