"""How a model is judged on the prompts of a text task: it plays them, whatever it learns from, and is shown."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.minibatches import MinibatchDataModule
from data_modules.text.conversation import Conversation
from data_modules.text.environment import Split
from data_modules.text.episode import Episode, Prompt
from data_modules.text.transcript import cells, write_tables
from lightning_nlf.batch import Actor, Batch, Scorer
from lightning_nlf.maths.steps import episode_sums, row_sums

SHOWN = 20  # dialogues in a transcript


class TextEvaluation(MinibatchDataModule):
    """Evaluation by episodes of a text task, and a transcript of the last one. A child fills in what stands here."""

    speaks = True
    exhibits_text = True
    reward: Scorer | None = None  # who pays in place of the task's rule
    conversation: Conversation
    context: int | None  # tokens that the policy can read, where the data says so
    evaluation_prompts: int | None  # of a split, from its first on; None = all
    evaluation_replies: int = 1  # that are sampled, beside the greedy one
    cases: dict[Split, list[Prompt]]
    shown: list[dict[str, str]]

    def _prompts_of(self, split: Split) -> list[Prompt]:
        """Raises ValueError: two of one id, or one that cannot be encoded, is empty, or leaves no room for a reply."""
        found: dict[str, Prompt] = {}
        for case in self.conversation.task.cases(split):
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

    # ---- how it is played

    def _seeds(self, episodes: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(2**62, size=(episodes, self.conversation.task.turns))

    def _paid(self, batch: Batch) -> Tensor:
        """(B, T) by the rule, or by who pays in its place."""
        assert batch.rewards is not None
        if self.reward is None:
            return batch.rewards
        return self.reward.score(batch.to(self.trainer.strategy.root_device)).to(batch.rewards)

    # ---- evaluation

    def evaluate(self, actor: Actor, rng: np.random.Generator, deterministic: bool) -> Batch:
        """`metrics` hold what is averaged beside the return, (B,) each, on every row of an episode."""
        prompts = self._judged("test" if self.trainer.testing else "val")
        copies = 1 if deterministic else self.evaluation_replies
        episodes = self._play(actor, rng, prompts, copies, deterministic)
        played, of = self.conversation.batch(episodes)
        batch = replace(played, rewards=self._paid(played))
        assert batch.rewards is not None
        if deterministic:
            scores = episode_sums(row_sums(batch.rewards, batch.valid), batch).tolist()
            pairs = list(zip(episodes, scores, strict=True))[:SHOWN]
            said = self.conversation.task.expected
            self.shown = [
                cells(episode, score, said(episode.prompt.case), self.reward is None) for episode, score in pairs
            ]
        beside = self.beside(episodes) | self.asked(actor, rng, episodes, deterministic)
        return replace(batch, metrics={name: x[of] for name, x in beside.items()})

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
        if self.conversation.task.turns > 1:
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
