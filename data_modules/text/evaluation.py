"""Evaluation of a model on the prompts of a text task, and a transcript of its replies."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.text.against_start import ComparedWithStart
from data_modules.text.checks import row_limit
from data_modules.text.environment import Split
from data_modules.text.episode import Episode, Prompt
from data_modules.text.reply_judge import ReplyJudge, paid_at_the_end
from data_modules.text.start_replies import reply_set
from data_modules.text.transcript import cells, write_tables
from data_modules.text.users import Unscored
from lightning_nlf.batch import Actor, Batch, Scorer
from lightning_nlf.maths.steps import episode_sums, row_sums

SHOWN = 20  # maximum number of dialogues in a transcript


class TextEvaluation(ComparedWithStart):
    """Evaluate a policy on episodes of a text task, with a transcript. Subclasses set the attributes."""

    speaks = True
    exhibits_text = True
    reward: Scorer | ReplyJudge | None = None  # source of the rewards, in place of the task's rule
    context: int | None  # number of tokens that the policy can read; None = the data sets no limit
    evaluation_prompts: int | None  # use only the first so many prompts of a split; None = all
    evaluation_replies: int = 1  # sampled replies per prompt, besides the greedy reply
    transcript_rows: list[dict[str, str]]

    @classmethod
    def arguments_beside(cls, folder: str) -> dict[str, Any]:
        """The default `tokenizer`: the tokenizer in the model's folder."""
        return {"tokenizer": {"class_path": "data_modules.text.FolderTokenizer", "init_args": {"path": folder}}}

    def arguments(self) -> dict[str, Any]:
        kind = type(self.tokenizer)
        return {"tokenizer": {"class_path": f"{kind.__module__}.{kind.__qualname__}"}, "context": self.context}

    @property
    def sizes(self) -> dict[str, int]:
        if not self.tokenizer.ready and (corpus := self.corpus_ahead()) is not None:
            self.tokenizer.fit(corpus)
        sizes = {"vocabulary": self.tokenizer.size} if self.tokenizer.ready else {}
        return sizes | ({"context": self.context} if self.context else {})

    def corpus_ahead(self) -> Iterable[str] | None:
        """Texts to build the tokenizer from before `setup`; None if no texts are available yet."""
        raise NotImplementedError

    def _prompts_of(self, split: Split) -> list[Prompt]:
        """The prompts of a split as ids.

        Raises ValueError: two prompts have the same id; or a prompt cannot be encoded, is empty, or leaves no room for
        a reply.
        """
        prompts: dict[str, Prompt] = {}
        for case in self.conversation.task.cases(split):
            where = f"{split} case {case.id!r}"
            if case.id in prompts:
                raise ValueError(f"{where}: two prompts have this id; give each prompt its own id")
            try:
                ids = self.conversation.format.ids(case.prompt)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            context = row_limit(self.context, self.trainer)
            if context is not None and len(ids) + self.conversation.max_new > context:
                raise ValueError(
                    f"{where}: {len(ids)} prompt tokens and {self.conversation.max_new} reply tokens (max_new) exceed "
                    f"the {context} tokens of a row (context): shorten the prompt or lower max_new"
                )
            prompts[case.id] = Prompt(case, ids)
        return list(prompts.values())

    @property
    def unpaid(self) -> bool:
        """Whether nothing scores replies, neither `reward` nor a rule of the task."""
        cases = self.cases.get("val")
        if not cases or self.reward is not None:
            return False
        return isinstance(self.conversation.task.begin(cases[0].case), Unscored)

    # ---- playing

    def _seeds(self, episodes: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(2**62, size=(episodes, self.conversation.task.turns))

    def _rewarded(self, batch: Batch, episodes: Sequence[Episode], of: Tensor) -> Batch:
        """Add rewards (B, T) to the batch, from `reward` or else from the task's rule; do nothing if there is neither.

        Args: of: (B,) the episode of each row, −1 = none.
        """
        if self.reward is None:
            return batch
        if isinstance(self.reward, ReplyJudge):
            return paid_at_the_end(batch, of, self.reward.judge(episodes))
        rewards = self.reward.score(batch.to(self.trainer.strategy.root_device))
        return replace(batch, rewards=rewards.to(batch.valid.device, torch.float32))

    # ---- evaluation

    def evaluate(self, actor: Actor, rng: np.random.Generator, deterministic: bool) -> Batch:
        """Play one evaluation. `metrics` has all metrics except the return, (B,), equal in all rows of an episode."""
        episodes, scores, batch, of = self.replied(actor, rng, deterministic)
        if deterministic:
            expected = self.conversation.task.expected
            self.transcript_rows = [
                cells(episode, score, expected(episode.prompt.case), self.reward is None, self.conversation.by_turn)
                for episode, score in list(zip(episodes, scores, strict=True))[:SHOWN]
            ]
        metrics = self.episode_metrics(episodes) | self.model_metrics(actor, rng, episodes, deterministic)
        return replace(batch, metrics={name: x[of] for name, x in metrics.items()})

    def replied(
        self, actor: Actor, rng: np.random.Generator, deterministic: bool
    ) -> tuple[list[Episode], list[float | None], Batch, Tensor]:
        prompts = self._rank_prompts("test" if self.trainer.testing else "val")
        copies = 1 if deterministic else self.evaluation_replies
        episodes = self._play(actor, rng, prompts, copies, deterministic)
        rows, of = self.conversation.batch(episodes)
        batch = self._rewarded(rows, episodes, of)
        scores: list[float | None] = [None] * len(episodes)
        if batch.rewards is not None:
            scores = episode_sums(row_sums(batch.rewards, batch.valid), batch).tolist()
        self.last_replies = reply_set(episodes, scores, self.conversation.by_turn)
        return episodes, scores, batch, of

    def model_metrics(
        self, actor: Actor, rng: np.random.Generator, episodes: list[Episode], deterministic: bool
    ) -> dict[str, Tensor]:
        """Further metrics by name that need the model, (episodes,) each."""
        return {}

    def _rank_prompts(self, split: Split) -> list[Prompt]:
        """This rank's share of the prompts, the same in every evaluation."""
        prompts = self.cases[split][: self.evaluation_prompts]
        return prompts[self.trainer.global_rank :: self._world_size] or prompts[:1]

    def _play(
        self, actor: Actor, rng: np.random.Generator, prompts: list[Prompt], copies: int, deterministic: bool
    ) -> list[Episode]:
        return self.conversation.play(actor, prompts, self._seeds(len(prompts) * copies, rng), copies, deterministic)

    def episode_metrics(self, episodes: list[Episode]) -> dict[str, Tensor]:
        """Metrics of episodes besides the return, by name, (episodes,) each, with the same names on every rank.

        `part/<name>`: each term of the reward; `length`: mean number of tokens per reply; `turns`: number of replies;
        `finished`: 1 if no reply was cut off, else 0; `true_reward`: the score by the task's rule, if `reward` replaces
        the rule.
        """
        metrics = {
            f"part/{name}": [episode.parts.get(name, 0.0) for episode in episodes] for name in self._parts(episodes)
        }
        metrics["length"] = [episode.decided / len(episode.turns) for episode in episodes]
        metrics["finished"] = [float(episode.finished) for episode in episodes]
        if self.conversation.task.turns > 1:
            metrics["turns"] = [float(len(episode.turns)) for episode in episodes]
        scores = [episode.score for episode in episodes]
        if self.reward is not None and not any(map(math.isnan, scores)):
            metrics["true_reward"] = scores
        return {name: torch.tensor(amounts) for name, amounts in metrics.items()}

    def _parts(self, episodes: list[Episode]) -> list[str]:
        """Names of the reward's terms on all ranks."""
        names: list[Any] = [{name for episode in episodes for name in episode.parts}]
        if self._world_size > 1:
            names *= self._world_size
            torch.distributed.all_gather_object(names, names[0])
        return sorted(set().union(*names))

    def exhibits(self, folder: Path) -> list[Path]:
        """Write the last evaluation as a table of prompt, reply, score, terms of the score, and expected response.

        The folder `transcripts` keeps the tables of all evaluations, named by iteration. The `changed` pages of
        `ComparedWithStart` are written too.
        """
        changed = super().exhibits(folder)
        if not self.transcript_rows:
            return changed
        markdown, html = write_tables(self.transcript_rows, folder)
        copy = folder / "transcripts" / f"iteration-{self.counters['iteration']:05}.html"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(html, copy)
        return [markdown, html, copy, *changed]
