"""Fresh replies to the prompts of a text task for every epoch, whatever the task and however many turns it has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from data_modules.label_buffer import as_labels
from data_modules.text.conversation import Episode, Prompt, cut_short
from data_modules.text.environment import TextEnvironment
from data_modules.text.rows import EXPERT, Segment
from data_modules.text.task_module import TextTaskDataModule, at_least_one
from data_modules.text.tokens import ranks
from lightning_nlf.batch import Actor, Batch
from lightning_nlf.functional import row_sums


class TextDataModule(TextTaskDataModule):
    """Plays a text task with the model that is being trained: prompts, G replies to each, and what they earn.

    Args:
        task, tokenizer, replies, max_new, reward, window …: of `TextTaskDataModule`; replies to a prompt share a
            `group`.
        prompts: a collection, over all ranks.
        unfinished: what happens to an episode with a reply that `max_new` cut: `keep`: the rule judges it as it is;
            `reject`: it is played again, `resamples` times at most, and then kept; `replace`: such a reply earns
            `unfinished_reward` and nothing else; `penalty`: that is added to what it earns; `drop`: nobody learns from
            the episode. Its rows stay, without a valid step, so that groups, minibatches and ranks remain even.
        expected_share: part of the prompts for which the teacher also gives the expected response: a row of the same
            group that nobody learns from but imitation. For tasks of one turn.
    """

    def __init__(
        self,
        task: TextEnvironment,
        prompts: int = 16,
        unfinished: Literal["keep", "reject", "replace", "penalty", "drop"] = "keep",
        unfinished_reward: float = -1.0,
        resamples: int = 4,
        expected_share: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(task=task, **kwargs)
        at_least_one(prompts=prompts, resamples=resamples)
        if not 0 <= expected_share <= 1:
            raise ValueError(f"expected_share: got {expected_share}, must be in [0, 1]")
        if expected_share and task.turns > 1:
            raise ValueError("expected_share: expected responses are for tasks of one turn; leave it at 0")
        if self.label_buffer is not None and not expected_share:
            raise ValueError("label_buffer: it remembers expected responses, and expected_share is 0")
        self.prompts, self.expected_share = prompts, expected_share
        self.unfinished, self.unfinished_reward, self.resamples = unfinished, unfinished_reward, resamples
        self.counters["feedback_calls"] = 0
        self._warned: set[str] = set()

    # ---- collection

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        self.refuse_too_few("prompts", self.prompts, "groups")
        prompts = self._draw(rng)
        episodes, spent, again = self._played(actor, prompts, rng)
        expected = self._expected(prompts)
        played, of = self.conversation.batch(episodes, list(expected.values()))
        batch = self._settled(replace(played, rewards=self._paid(played)), episodes, of)
        assert batch.rewards is not None
        row_score = row_sums(batch.rewards, played.valid)
        earned = torch.zeros(len(episodes)).index_add(0, of, row_score[: len(of)])
        score = torch.cat([earned[of], row_score[len(of) :]])
        batch = self._described(replace(batch, score=score), of, list(expected))
        if self.label_buffer is not None and expected:
            self.label_buffer.add(as_labels(replace(batch[len(of) :], group=None)))
        calls = (len(episodes) if self.reward is None else 0) + len(expected)
        assert batch.expert_mask is not None
        self.count(env_steps=spent, expert_steps=0, labels=int(batch.expert_mask.sum()), feedback_calls=calls)
        self._tell(episodes, earned, again)
        return batch

    def _draw(self, rng: np.random.Generator) -> list[Prompt]:
        """This rank's prompts; none a second time before all had their turn."""
        cases, count = self.cases["train"], self._share(self.prompts)
        rounds = -(-count // len(cases))
        order = np.concatenate([rng.permutation(len(cases)) for _ in range(rounds)])[:count]
        return [cases[i] for i in order]

    def _played(self, actor: Actor, prompts: list[Prompt], rng: np.random.Generator) -> tuple[list[Episode], int, int]:
        """The episodes, the tokens they cost, rejected ones too, and how many episodes were played again."""
        count = len(prompts) * self.replies
        episodes = self.conversation.play(actor, prompts, self._seeds(count, rng), self.replies)
        spent, again = sum(episode.decided for episode in episodes), 0
        for _ in range(self.resamples if self.unfinished == "reject" else 0):
            cut = [row for row, episode in enumerate(episodes) if not episode.finished]
            if not cut:
                break
            seeds = self._seeds(count, rng)[cut]
            fresh = self.conversation.play(actor, [episodes[row].prompt for row in cut], seeds)
            spent, again = spent + sum(episode.decided for episode in fresh), again + len(fresh)
            for row, episode in zip(cut, fresh, strict=True):
                episodes[row] = episode
        return episodes, spent, again

    def _expected(self, prompts: list[Prompt]) -> dict[int, list[Segment]]:
        """The expected response to each of the first prompts, by the prompt's place."""
        rows = {}
        for place, prompt in enumerate(prompts[: round(self.expected_share * len(prompts))]):
            text = self.task.expected(prompt.case)
            if text is not None:
                reward = self.task.begin(prompt.case).reply(text, True).reward
                ids = [*self.tokenizer.encode(text), self.tokenizer.eos]
                rows[place] = [Segment(prompt.ids), Segment(ids, EXPERT, None, reward)]
        return rows

    def _settled(self, batch: Batch, episodes: list[Episode], of: Tensor) -> Batch:
        """With what `unfinished` says of replies that were cut."""
        assert batch.rewards is not None
        if self.unfinished in ("replace", "penalty"):
            dialogues = [dialogue for episode in episodes for dialogue in self.conversation.rows(episode)]
            steps, ends = cut_short(dialogues, self.tokenizer.eos, batch.rewards)
            kept = batch.rewards if self.unfinished == "penalty" else torch.where(steps, 0.0, batch.rewards)
            return replace(batch, rewards=kept + self.unfinished_reward * ends)
        if self.unfinished == "drop":
            stays = torch.ones(len(batch), 1, dtype=torch.bool)
            stays[: len(of), 0] = torch.tensor([episode.finished for episode in episodes])[of]
            return replace(batch, valid=batch.valid & stays, mask=batch.mask & stays)
        return batch

    def _described(self, batch: Batch, of: Tensor, shown: list[int]) -> Batch:
        """With groups where there are several rows of one, and ranks where a row is an episode."""
        assert batch.score is not None
        if self.replies == 1 and not shown:
            return batch
        group = torch.cat([of // self.replies, torch.tensor(shown, dtype=torch.long)])
        if self.conversation.window is not None:
            return replace(batch, group=group)
        own = ranks(batch.score[: len(of)], group[: len(of)])
        return replace(batch, group=group, rank=torch.cat([own, own.new_full((len(shown),), -1)]))

    # ---- what is said of it

    def _tell(self, episodes: list[Episode], earned: Tensor, again: int) -> None:
        """Averages over all ranks, and warnings where nothing can be learned."""
        averaged = {"return": earned} | self.beside(episodes)
        if self.unfinished == "reject":
            averaged["played_again"] = torch.tensor([float(again), *[0.0] * (len(episodes) - 1)])
        if self.replies > 1:
            of_group = earned.view(-1, self.replies)
            averaged["no_spread"] = (of_group.amax(1) == of_group.amin(1)).float()
        sums = torch.stack([torch.stack([x.double().sum(), torch.tensor(float(len(x)))]) for x in averaged.values()])
        totals = self._sum_over_ranks(sums)  # (names, 2)
        self.statistics = dict(zip(averaged, (totals[:, 0] / totals[:, 1]).tolist(), strict=True))
        if self.statistics["finished"] == 0:
            limit = self.conversation.max_new
            self._warn_once(f"every reply was cut at {limit} tokens: raise max_new, or start from weights that stop")
        if self.statistics.get("no_spread") == 1:
            self._warn_once(
                "in every group all replies earned the same, so a group baseline leaves nothing to learn: raise "
                "replies, or start from weights that are right sometimes"
            )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(message)
