"""What every DataModule of a text task has: the prompts in tokens, and how a model is judged on them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from data_modules.minibatches import TEST, loader
from data_modules.rollout import RolloutDataModule
from data_modules.text.conversation import Conversation, Episode, Prompt
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.rows import as_batch
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.transcript import cells, replies_by_prompt, write_tables
from lightning_nlf.batch import Actor, Batch, Scorer
from lightning_nlf.functional import episode_sums, row_sums

SHOWN = 20  # dialogues in a transcript
PREDICTED = 64  # prompts at a time


class TextTaskDataModule(RolloutDataModule):
    """A text task whose prompts are encoded and checked, played for evaluation, and shown. A child says `collect`.

    Args:
        task: prompts, rules and demonstrations.
        tokenizer: made from the task's corpus at `setup`, or a model's own.
        replies: episodes of one prompt, in training and in a prediction.
        max_new: tokens a reply may have.
        reward: who pays in place of the task's rule, such as a reward model; the rule is logged as `true_reward`.
        window: turns that the policy sees, its own included, for tasks whose last words say all: 1 where they do. A
            row is then one turn, and `extra` says of which `episode` and which `part` of it. Else a dialogue is a row.
        top_k, top_p: of sampling; the stored log-probabilities are of what is left, so the first ratio is not 1.
        evaluation_prompts: of a split, from its first on; None = all. One greedy episode each, and
            `evaluation_replies` sampled ones.
        predict_split: whose prompts `predict` samples `replies` replies to.
        prompt_suffix: text behind every prompt, a control code for instance.
        context: tokens that the policy can read; a prompt that leaves no room for a reply is refused at `setup`.
        seed, minibatches, passes, label_buffer: of `RolloutDataModule`.
    """

    recorded = "replies"  # the file that `records` go to
    exhibits_text = True  # costs nothing

    def __init__(
        self,
        task: TextEnvironment,
        tokenizer: Tokenizer,
        replies: int = 4,
        max_new: int = 32,
        reward: Scorer | None = None,
        window: int | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        evaluation_prompts: int | None = 64,
        evaluation_replies: int = 1,
        predict_split: Split = "test",
        prompt_suffix: str = "",
        context: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        at_least_one(replies=replies, max_new=max_new, window=window, evaluation_replies=evaluation_replies)
        at_least_one(evaluation_prompts=evaluation_prompts)
        if window is not None and task.turns == 1:
            raise ValueError(f"window: got {window} for a task of one turn, which has nothing to leave out; drop it")
        if top_k < 0:
            raise ValueError(f"top_k: got {top_k}, must be 0 (all tokens) or more")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p: got {top_p}, must be in (0, 1]")
        self.task, self.tokenizer, self.replies, self.reward = task, tokenizer, replies, reward
        self.evaluation_prompts, self.evaluation_replies = evaluation_prompts, evaluation_replies
        self.predict_split, self.context = predict_split, context
        self.conversation = Conversation(task, tokenizer, max_new, window, prompt_suffix, top_k, top_p)
        self.cases: dict[Split, list[Prompt]] = {}
        self.shown: list[dict[str, str]] = []
        self._unanswered = 0  # prompts of a prediction to which all replies were empty, this rank's

    def setup(self, stage: str) -> None:
        """Raises ValueError: a prompt that cannot be encoded or has no room, two of one id, a `reward` of other ids."""
        if self.cases:
            return
        self.tokenizer.fit(self.task.corpus())
        self.refuse_other_ids("reward", self.reward)
        splits: tuple[Split, ...] = ("train", "val", "test")
        self.cases = {split: self._encoded(split) for split in splits}

    def refuse_other_ids(self, name: str, model: object) -> None:
        """Raises ValueError: the model, which the knob `name` has brought, says that it reads other ids."""
        read = getattr(model, "tokenizer_digest", None)
        if read not in (None, self.tokenizer_digest):
            raise ValueError(
                f"{name}: it reads the ids of another tokenizer ({read[:12]}…) than the prompts are in "
                f"({self.tokenizer_digest[:12]}…): use the tokenizer that it was trained with, or another {name}"
            )

    def refuse_short_context(self, name: str, model: object, tokens: int) -> None:
        """Raises ValueError: the model, which the knob `name` has brought, says that it cannot read so many."""
        context = getattr(model, "context", None)
        if context is not None and tokens > context:
            raise ValueError(
                f"data.{name}: it can read {context} tokens, and a row has up to {tokens}, prompt and reply (max_new) "
                f"together: shorten prompts or max_new, or use another {name} with a larger context"
            )

    def _encoded(self, split: Split) -> list[Prompt]:
        found: dict[str, Prompt] = {}
        for case in self.task.cases(split):
            where = f"{split} case {case.id!r}"
            if case.id in found:
                raise ValueError(f"{where}: two prompts have this id; give each its own")
            try:
                ids = self.conversation.opening(case.prompt)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if not ids:
                raise ValueError(f"{where}: the prompt is empty; a reply needs at least one token before it")
            if self.context is not None and len(ids) + self.conversation.max_new > self.context:
                raise ValueError(
                    f"{where}: {len(ids)} tokens and {self.conversation.max_new} of the reply (max_new) are more than "
                    f"the context of {self.context}: shorten the prompt or max_new"
                )
            found[case.id] = Prompt(case, ids)
        return list(found.values())

    # ---- what a run is about

    @property
    def vocabulary(self) -> int:
        """Ids that a policy must have at least."""
        return self.tokenizer.size

    @property
    def longest_row(self) -> int:
        """Tokens that a row may have at least: of the longest prompt and a reply to it."""
        return max(len(prompt.ids) for split in self.cases.values() for prompt in split) + self.conversation.max_new

    @property
    def tokenizer_digest(self) -> str:
        return self.tokenizer.digest

    @property
    def data_digest(self) -> str:
        """SHA-256 of the ids and prompts of all splits, in their order."""
        content = [[split, prompt.case.id, prompt.case.prompt] for split in self.cases for prompt in self.cases[split]]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    # ---- how it is played

    def _seeds(self, episodes: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(2**62, size=(episodes, self.task.turns))

    def _paid(self, batch: Batch) -> Tensor:
        """(B, T) by the rule, or by who pays in its place."""
        assert batch.rewards is not None
        return batch.rewards if self.reward is None else self.reward.score(batch).to(batch.rewards)

    # ---- evaluation

    def evaluate(self, actor: Actor, rng: np.random.Generator, deterministic: bool) -> Batch:
        """`extra` holds what is averaged beside the return, (B,) each, on every row of an episode."""
        prompts = self._judged("test" if self.trainer.testing else "val")
        copies = 1 if deterministic else self.evaluation_replies
        episodes = self._play(actor, rng, prompts, copies, deterministic)
        played, of = self.conversation.batch(episodes)
        batch = replace(played, rewards=self._paid(played))
        assert batch.rewards is not None
        if deterministic:
            scores = episode_sums(row_sums(batch.rewards, batch.valid), batch).tolist()
            pairs = list(zip(episodes, scores, strict=True))[:SHOWN]
            said = self.task.expected
            self.shown = [
                cells(episode, score, said(episode.prompt.case), self.reward is None) for episode, score in pairs
            ]
        beside = self.beside(episodes) | self.asked(actor, rng, episodes, deterministic)
        return replace(batch, extra=batch.extra | {name: x[of] for name, x in beside.items()})

    def asked(
        self, actor: Actor, rng: np.random.Generator, episodes: list[Episode], deterministic: bool
    ) -> dict[str, Tensor]:
        """What else is averaged, (episodes,) each, and has to be asked of the model."""
        return {}

    def _judged(self, split: Split) -> list[Prompt]:
        """This rank's share of the prompts, always the same."""
        prompts = self.cases[split][: self.evaluation_prompts]
        return prompts[self.trainer.global_rank :: self._world_size] or prompts[:1]

    def _play(
        self, actor: Actor, rng: np.random.Generator, prompts: list[Prompt], copies: int, deterministic: bool
    ) -> list[Episode]:
        return self.conversation.play(actor, prompts, self._seeds(len(prompts) * copies, rng), copies, deterministic)

    def beside(self, episodes: list[Episode]) -> dict[str, Tensor]:
        """What is averaged beside the return, (episodes,) each, by the same names on every rank.

        `part/…` of the reward; tokens a reply (`length`), replies (`turns`), whether all `finished`, `true_reward`.
        """
        beside = {
            f"part/{name}": [episode.parts.get(name, 0.0) for episode in episodes] for name in self._parts(episodes)
        }
        beside["length"] = [episode.decided / len(episode.turns) for episode in episodes]
        beside["finished"] = [float(episode.finished) for episode in episodes]
        if self.task.turns > 1:
            beside["turns"] = [float(len(episode.turns)) for episode in episodes]
        if self.reward is not None:
            beside["true_reward"] = [episode.score for episode in episodes]
        return {name: torch.tensor(amounts) for name, amounts in beside.items()}

    def _parts(self, episodes: list[Episode]) -> list[str]:
        """Names of parts of the reward on any rank."""
        known: list[Any] = [{name for episode in episodes for name in episode.parts}]
        if self._world_size > 1:
            known *= self._world_size
            torch.distributed.all_gather_object(known, known[0])
        return sorted(set().union(*known))

    def exhibits(self, folder: Path) -> list[Path]:
        """The last evaluation as a table of prompt, reply, score, its parts, and the expected response.

        In `transcripts` those before it stay, each by the iteration that it came after.
        """
        if not self.shown:
            return []
        markdown, html = write_tables(self.shown, folder)
        kept = folder / "transcripts" / f"iteration-{self.counters['iteration']:05}.html"
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(html, kept)
        return [markdown, html, kept]

    # ---- prediction

    def predict_dataloader(self) -> list[DataLoader]:
        prompts = self._judged(self.predict_split)
        firsts = range(0, len(prompts), PREDICTED)
        self._unanswered = 0

        def sampled() -> Iterator[Batch]:
            rng = self._rng(TEST, 2)
            for first in firsts:
                some = prompts[first : first + PREDICTED]
                with torch.no_grad():
                    episodes = self._play(self._actor, rng, some, self.replies, False)
                    batch = as_batch([self.conversation.dialogue(episode) for episode in episodes])
                place = torch.arange(len(batch)) // self.replies + first
                yield replace(batch, rewards=self._paid(batch), group=place)

        return [loader(sampled, len(firsts))]

    def records(self, batch: Batch) -> list[dict[str, Any]]:
        """Each prompt of a predicted batch with its replies and what they earned: feedback to be completed.

        `meta` keeps the tokens, so that what learns from the file sees what was sampled, and the name of the `run`.
        Nothing can be said of an empty reply: `meta.empty` counts those that are left out. A prompt to which all are
        empty has no line, and behind the last batch a warning says to how many that happened.
        """
        assert batch.group is not None
        prompts = self._judged(self.predict_split)
        lines = replies_by_prompt(batch, prompts, self.tokenizer, self.task)
        for line in lines:  # a second round samples for the same ids
            line["meta"]["run"] = Path(self.trainer.default_root_dir).resolve().name
        answered = [line for line in lines if line["responses"]]
        self._unanswered += len(lines) - len(answered)
        if int(batch.group.max()) + 1 == len(prompts):
            counts = torch.tensor([self._unanswered, len(prompts)], dtype=torch.float64)
            left_out, of = self._sum_over_ranks(counts).tolist()
            if left_out:
                rank_zero_warn(
                    f"{left_out:.0f} of {of:.0f} prompts are not in {self.recorded}.jsonl: every reply to them was "
                    "empty, of which nothing can be said; raise replies, or train the policy to say something first"
                )
        return answered


def at_least_one(**amounts: int | None) -> None:
    """Raises ValueError naming the first that is not; None stands for no limit."""
    for name, amount in amounts.items():
        if amount is not None and amount < 1:
            raise ValueError(f"{name}: got {amount}, must be at least 1")
