"""DataModule for training on feedback files: scores, rankings, preferences, critiques, expected responses, steps."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from data_modules.feedback.encoding import calls, encoded, report_counts, rows_of, with_scores
from data_modules.feedback.rows import Layout, Use
from data_modules.feedback.selection import Keep, refuse_overlap, split
from data_modules.groups import grouped
from data_modules.judgements.fields import Scale
from data_modules.judgements.files import read_all
from data_modules.judgements.schema import Judgement
from data_modules.minibatches import loader
from data_modules.text.checks import row_limit
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.held_out import HeldOutReplies
from data_modules.text.held_out_prompts import HeldOutLine
from data_modules.text.templates import refuse_template
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.wording import Wording
from lightning_nlf.batch import Actor, Batch, Workload
from lightning_nlf.numbers import BelowOne, Number, Size

Paths = str | list[str]
USED: tuple[Use, ...] = ("score", "ranking", "preference", "steps", "expected")
EVALUATED = 64  # approximate number of rows per held-out batch


class FeedbackDataModule(HeldOutReplies):
    """Train on judged replies from feedback files. One layout of rows serves all objectives; a line is a `group`.

    `mask` is True on the tokens of a reply with a score or a rank; if a reply has only labelled steps, it is True at
    the ends of the steps. `expert_mask` is True on an expected response. Missing values are masked field by field, so
    lines with different fields can be mixed: a missing `rank` is −1; a missing `score` is NaN, with `extra["scored"]`
    False; a missing `extra["preference"]` is NaN. A critique is a separate row, which is imitated, with
    `extra["critique"]` True. A score is the reward at the last token. If steps are used, step labels replace the score:
    each label is the reward at the end of its step, and `extra["step_ends"]` marks these ends. A reply that was cut off
    (`meta.finished` is false in the line) gets no stop token, and `extra["finished"]` is False. Held-out rows have the
    same layout, except that scores are not rewards. If the model is a policy, it also replies to prompts at evaluation.

    Args:
        path: one or more feedback files. Two lines may not have the same id, replies and source, unless their
            `meta.run` shows that different runs sampled the replies.
        tokenizer: the model's tokenizer; by default the one in the model's folder, or a `WordTokenizer` if the model
            has none. A tokenizer without a vocabulary is fitted to the task's corpus, or to the files if there is no
            task.
        use: the fields to learn from; in a run, by default the fields that the objective can use. An objective that
            cannot mask missing values needs exactly one field: `[score]` for objectives with rewards, `[steps]` for
            process rewards. `critique` trains the model to predict a critique after `critique_prompt`. `responses` adds
            replies that have no feedback themselves, to be compared with the expected response.
        keep: rejection sampling: which scored replies are imitated, like expected responses. With `use: [expected]` the
            model learns only from these replies and from expected responses.
        control_codes: texts that condition on quality, with the code for the worst replies first. Each scored reply
            (with `keep`, each kept reply) is imitated after a prompt that ends with the code of the reply's score. An
            expected response gets the best code. At test time each prompt ends with the best code.
        val_share: share of the prompts that is held out, with all lines of these prompts. The default is 0.1 in a run
            without `val_path`, otherwise 0.
        val_path, test_path: files of held-out prompts. Without `test_path`, tests use the validation prompts.
        scale: lowest and highest possible score in the files.
        on_bad: `skip` = leave out lines that are wrong or that the tokenizer cannot encode, and list them in a warning.
        context: number of tokens that the model can read; by default the model's own limit. A longer row is an error;
            rows are never truncated.
        critique_prompt: the prompt before a critique, either a `Wording` with chat turns, or a template with the places
            `{prompt}` and `{response}`. In a chat the filled template replaces the last message. The default is
            `Wording` if prompts go through a chat template, else one line of text.
        expected_score: score given to expected responses, such as the highest possible score. Injection objectives then
            learn from an expected response as one more reply of the group. Without `expected_score`, expected responses
            are only imitated, and injection objectives raise an error.
        task: text task whose corpus fits the tokenizer if needed, and whose prompts are used for evaluation. Without a
            task the held-out prompts are used.
        evaluation_prompts, chat, reward: see `HeldOutReplies`.
        seed, minibatches, passes, rows_per_batch, tokens_per_batch: see `MinibatchDataModule`.

    Raises:
        ValueError: an argument is wrong, or, at `setup`, a line of a file; the message says how to correct it.
    """

    def __init__(
        self,
        path: Paths,
        tokenizer: Tokenizer | None = None,
        use: tuple[Use, ...] | None = None,
        keep: Keep | None = None,
        control_codes: tuple[str, ...] = (),
        val_share: BelowOne | None = None,
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
        use = USED if use is None else use
        val_share = val_share or 0.0
        if not 0 <= val_share < 1:
            raise ValueError(f"val_share: got {val_share}, must be in [0, 1)")
        if val_share and val_path is not None:
            raise ValueError("val_share: val_path gives the held-out prompts already; remove one of the two")
        if len(set(control_codes)) < len(control_codes) or len(control_codes) == 1 or "" in control_codes:
            raise ValueError(f"control_codes: got {list(control_codes)}, must be two or more different non-empty texts")
        if isinstance(critique_prompt, str):
            refuse_template("critique_prompt", critique_prompt, ("prompt", "response"))
        if expected_score is not None and ("expected" not in use or not scale[0] <= expected_score <= scale[1]):
            raise ValueError(
                f"expected_score: got {expected_score}; it must be within `scale`, and `use` must include expected"
            )
        self.paths, self.val_paths, self.test_paths = _listed(path), _listed(val_path), _listed(test_path)
        self.scale, self.on_bad, self.val_share = scale, on_bad, val_share
        codes = tuple(control_codes)
        self.suffix = codes[-1] if codes else ""
        self.layout = Layout(self.format, tuple(use), (), keep, codes, self.context, critique_prompt, expected_score)
        self.counters["feedback_calls"] = 0
        self.rows: Batch | None = None
        self.held_out: dict[str, Batch] = {}  # by split, "val" or "test"
        self._spent = 0  # number of teacher calls for the training lines

    # ---- from files to rows

    def setup(self, stage: str) -> None:
        if self.rows is not None:
            return
        all_judgements, val, test = (
            read_all(paths, self.scale, self.on_bad) for paths in (self.paths, self.val_paths, self.test_paths)
        )
        training, validation = split(all_judgements, self.val_share)
        held_out_lines = {"val": validation or val, "test": test}
        for name, judgements in held_out_lines.items():
            refuse_overlap(training, judgements, f"{name}_path")
        if not self.tokenizer.ready:
            texts = (text for judgement in training for text in self.layout.texts(judgement))
            self.tokenizer.fit(texts if self.task is None else self.task.corpus())
        self.layout = replace(self.layout, context=row_limit(self.context, self.trainer))
        self.layout = with_scores(self.layout, training, self.paths)
        encodable, groups = encoded(self.layout, training, self.on_bad)
        if len(encodable) < len(training):  # skipped lines must not influence the score thresholds
            training, self.layout = encodable, with_scores(self.layout, encodable, self.paths)
            groups = [self.layout.rows(judgement) for judgement in training]
        self.rows = rows_of(self.layout, training, groups, self.paths)
        for name, judgements in held_out_lines.items():
            if judgements:
                names = self.test_paths if name == "test" else self.val_paths or self.paths
                rows = rows_of(self.layout, *encoded(self.layout, judgements, self.on_bad), names)
                self.held_out[name] = rows if "step_ends" in rows.extra else replace(rows, rewards=None)
        replies = self.rows.valid.sum(1)
        prompts = self.rows.valid.int().argmax(1) + 1
        prompts_to_play: dict[Split, list[Judgement]] = {
            "val": held_out_lines["val"],
            "test": held_out_lines["test"] or held_out_lines["val"],
        }
        lines = {split: list(map(_held_out_line, judgements)) for split, judgements in prompts_to_play.items()}
        self.set_up_replies(self._longest_judged, int(prompts.max()), int(replies.max()), lines)
        self._spent = sum(calls(judgement, self.layout.use) for judgement in training)
        report_counts(training, self.rows, self.layout.use, sum(map(len, held_out_lines.values())))
        _ = self.data_digest  # cached now, before the files can change

    # ---- training

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        assert self.rows is not None, "call setup first"
        places, groups = grouped(self.rows)
        self.refuse_too_few("path", groups, "judgements")
        if not self.counters["feedback_calls"]:  # counted once, however often the rows are read
            self.counters["feedback_calls"] = self._spent
        return self.rows[places % self._world_size == self.trainer.global_rank]

    # ---- evaluation

    def val_dataloader(self) -> list[DataLoader]:
        return self._evaluation("val")

    def test_dataloader(self) -> list[DataLoader]:
        return self._evaluation("test")

    def _evaluation(self, split: Split) -> list[DataLoader]:
        """Loaders of evaluation prompts, then one of held-out rows, with the same number of batches on every rank."""
        name = split if split in self.held_out else "val"
        if name not in self.held_out:
            return self.reply_loaders(split)
        rows = self.held_out[name]
        places, groups = grouped(rows)
        if groups < self._world_size:
            raise ValueError(
                f"{name}: {groups} held-out prompts are too few for {self._world_size} processes; hold out more prompts"
            )
        parts = min(-(-len(rows) // (EVALUATED * self._world_size)), groups // self._world_size)
        local_groups = torch.arange(self.trainer.global_rank, groups, self._world_size).tensor_split(parts)
        masks = [torch.isin(places, part) for part in local_groups]
        return [*self.reply_loaders(split), loader(partial(map, rows.__getitem__, masks), parts)]

    # ---- sizes, digests and checkpoints

    @property
    def longest_row(self) -> int:
        """Number of tokens, prompt and reply together, in the longest row or episode."""
        return max(self._longest_judged, self.longest_played)

    @property
    def workload(self) -> Workload:
        assert self.rows is not None
        unread = self.rows.valid.flip(1).int().argmax(1)  # padding after the last judged token
        tokens = int((self.rows.valid.shape[1] - unread).sum())
        return Workload(len(self.rows), tokens, self.passes, evaluation=self.validation)

    @property
    def _longest_judged(self) -> int:
        rows = [self.rows, *self.held_out.values()]
        return max(batch.obs.shape[1] for batch in rows if batch is not None) + 1  # the last token is in `final_obs`

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of the concatenated files at `setup`; for a single file it equals the output of `sha256sum`."""
        total = hashlib.sha256()
        for path in self.paths + self.val_paths + self.test_paths:
            total.update(Path(path).read_bytes())
        return total.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"data": self.data_digest, "tokenizer": self.tokenizer.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError: the tokenizer differs from the checkpoint's, or, in a resumed fit, the files differ."""
        super().load_state_dict(state_dict)
        if state_dict["tokenizer"] != self.tokenizer.digest:
            raise ValueError("tokenizer: it differs from the checkpoint's, so the token ids would mean other texts")
        if self.trainer.state.fn == "fit" and state_dict["data"] != self.data_digest:
            raise ValueError("path: the files have changed since the run began; start a new run from its weights")


def _held_out_line(judgement: Judgement) -> HeldOutLine:
    facts = judgement.meta.get("facts")
    return HeldOutLine(judgement.prompt, judgement.expected, judgement.id, facts if isinstance(facts, dict) else {})


def _listed(paths: Paths | None) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths or ())
