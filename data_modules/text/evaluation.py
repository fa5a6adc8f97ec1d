"""How a model is judged on the prompts of a text task: it plays them, whatever it learns from, and is shown."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.text.against_start import ComparedWithStart
from data_modules.text.checks import context_of_model
from data_modules.text.environment import Split
from data_modules.text.episode import Episode, Prompt
from data_modules.text.reply_judge import ReplyJudge, paid_at_the_end
from data_modules.text.start_replies import reply_set
from data_modules.text.transcript import cells, write_tables
from data_modules.text.users import Unscored
from lightning_nlf.batch import Actor, Batch, Scorer
from lightning_nlf.maths.steps import episode_sums, row_sums

SHOWN = 20  # dialogues in a transcript


class TextEvaluation(ComparedWithStart):
    """Evaluation by episodes of a text task, and a transcript of the last one. A child fills in what stands here."""

    speaks = True
    exhibits_text = True
    reward: Scorer | ReplyJudge | None = None  # who pays in place of the task's rule
    context: int | None  # tokens that the policy can read, where the data says so
    evaluation_prompts: int | None  # of a split, from its first on; None = all
    evaluation_replies: int = 1  # that are sampled, beside the greedy one
    shown: list[dict[str, str]]

    def _prompts_of(self, split: Split) -> list[Prompt]:
        """Raises ValueError: two of one id, or one that cannot be encoded, is empty, or leaves no room for a reply."""
        found: dict[str, Prompt] = {}
        for case in self.conversation.task.cases(split):
            where = f"{split} case {case.id!r}"
            if case.id in found:
                raise ValueError(f"{where}: two prompts have this id; give each its own")
            try:
                ids = self.conversation.format.ids(case.prompt)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            context = self.context or context_of_model(self.trainer)
            if context is not None and len(ids) + self.conversation.max_new > context:
                raise ValueError(
                    f"{where}: {len(ids)} tokens and {self.conversation.max_new} of the reply (max_new) are more than "
                    f"the {context} that a row may have (context): shorten the prompt or max_new"
                )
            found[case.id] = Prompt(case, ids)
        return list(found.values())

    @property
    def unpaid(self) -> bool:
        cases = self.cases.get("val")
        if not cases or self.reward is not None:
            return False
        return isinstance(self.conversation.task.begin(cases[0].case), Unscored)

    # ---- how it is played

    def _seeds(self, episodes: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(2**62, size=(episodes, self.conversation.task.turns))

    def _paid(self, batch: Batch, episodes: Sequence[Episode], of: Tensor) -> Batch:
        """With rewards (B, T) by the rule, or by who pays in its place; with none where nobody pays.

        Args: of: (B,) the episode of each row, −1 of none.
        """
        if self.reward is None:
            return batch
        if isinstance(self.reward, ReplyJudge):
            return paid_at_the_end(batch, of, self.reward.judge(episodes))
        rewards = self.reward.score(batch.to(self.trainer.strategy.root_device))
        return replace(batch, rewards=rewards.to(batch.valid.device, torch.float32))

    # ---- evaluation

    def evaluate(self, actor: Actor, rng: np.random.Generator, deterministic: bool) -> Batch:
        """`metrics` hold what is averaged beside the return, (B,) each, on every row of an episode."""
        episodes, scores, batch, of = self.replied(actor, rng, deterministic)
        if deterministic:
            expected = self.conversation.task.expected
            self.shown = [
                cells(episode, score, expected(episode.prompt.case), self.reward is None, self.conversation.by_turn)
                for episode, score in list(zip(episodes, scores, strict=True))[:SHOWN]
            ]
        beside = self.beside(episodes) | self.asked(actor, rng, episodes, deterministic)
        return replace(batch, metrics={name: x[of] for name, x in beside.items()})

    def replied(
        self, actor: Actor, rng: np.random.Generator, deterministic: bool
    ) -> tuple[list[Episode], list[float | None], Batch, Tensor]:
        prompts = self._judged("test" if self.trainer.testing else "val")
        copies = 1 if deterministic else self.evaluation_replies
        episodes = self._play(actor, rng, prompts, copies, deterministic)
        played, of = self.conversation.batch(episodes)
        batch = self._paid(played, episodes, of)
        scores: list[float | None] = [None] * len(episodes)
        if batch.rewards is not None:
            scores = episode_sums(row_sums(batch.rewards, batch.valid), batch).tolist()
        self.last_replies = reply_set(episodes, scores, self.conversation.by_turn)
        return episodes, scores, batch, of

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
        scores = [episode.score for episode in episodes]
        if self.reward is not None and not any(map(math.isnan, scores)):
            beside["true_reward"] = scores
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

        In `transcripts` those before it stay, each by the iteration that it came after. Beside it `changed`, of
        `ComparedWithStart`.
        """
        changed = super().exhibits(folder)
        if not self.shown:
            return changed
        markdown, html = write_tables(self.shown, folder)
        kept = folder / "transcripts" / f"iteration-{self.counters['iteration']:05}.html"
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(html, kept)
        return [markdown, html, kept, *changed]
