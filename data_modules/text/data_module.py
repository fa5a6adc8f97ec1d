"""Fresh replies to the prompts of a text task for every epoch, whatever the task and however many turns it has."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from data_modules.label_buffer import as_labels
from data_modules.text.conversation import Episode, Prompt, cut_short
from data_modules.text.environment import TextEnvironment
from data_modules.text.expected import ExpectedResponses, Shown
from data_modules.text.injection import Injection
from data_modules.text.labelling import labelled
from data_modules.text.task_module import TextTaskDataModule, at_least_one
from data_modules.text.tokens import ranks
from lightning_nlf.batch import Actor, Batch, TextExpert
from lightning_nlf.functional import row_sums
from lightning_nlf.numbers import Number, Size


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
        expected: what the teacher would have said to some of the prompts, as rows of their own. With `injection` and
            `labeller` for tasks of one turn.
        injection: an expert takes over in some of the replies.
        labeller: an expert that says of every token which it would have chosen; with it, imitation may compare
            distributions.

    `labels` counts what experts decided: tokens injected, tokens labelled, and expected responses, each when it is
    first shown, as the teacher writes it once. `feedback_calls` counts expected responses so, critiques that say where
    an expert takes over, and replies that the rule scores, or a judge who says how many it has (`judged`).
    """

    def __init__(
        self,
        task: TextEnvironment,
        prompts: Size = 16,
        unfinished: Literal["keep", "reject", "replace", "penalty", "drop"] = "keep",
        unfinished_reward: Number = -1.0,
        resamples: Size = 4,
        expected: ExpectedResponses | None = None,
        injection: Injection | None = None,
        labeller: TextExpert | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(task=task, **kwargs)
        at_least_one(prompts=prompts, resamples=resamples)
        for name, knob in (("expected", expected), ("labeller", labeller)):
            if knob is not None and task.turns > 1:
                raise ValueError(f"{name}: for tasks of one turn; {type(task).__name__} has {task.turns}: leave it out")
        if injection is not None:
            injection.check(task, self.replies, self.conversation.max_new)
        if self.label_buffer is not None and expected is None:
            raise ValueError("label_buffer: it remembers expected responses; give `expected`")
        self.prompts, self.expected, self.injection, self.labeller = prompts, expected, injection, labeller
        self.unfinished, self.unfinished_reward, self.resamples = unfinished, unfinished_reward, resamples
        self.counters["feedback_calls"] = 0
        self._warned: set[str] = set()

    def setup(self, stage: str) -> None:
        """Raises ValueError: as `TextTaskDataModule`; an expert of other ids; fewer expected responses than asked; a
        row that `reward` or an expert cannot read.
        """
        if self.cases:
            return
        super().setup(stage)
        experts = {
            "injection.expert": self.injection and self.injection.expert,
            "labeller": self.labeller,
            "expected.as_if": self.expected and self.expected.as_if,
        }
        for name, expert in experts.items():
            self.refuse_other_ids(name, expert)
        if self.expected is not None:
            self.expected.load(self.task, self.tokenizer, self.cases["train"])
        for name, model in ({"reward": self.reward} | experts).items():
            self.refuse_short_context(name, model, self.longest_row)

    @property
    def longest_row(self) -> int:
        return max(super().longest_row, 0 if self.expected is None else self.expected.longest)

    # ---- collection

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        self.refuse_too_few("prompts", self.prompts, "groups")
        prompts = self._draw(rng)
        episodes, spent, again = self._played(actor, prompts, rng)
        shown = [] if self.expected is None else self.expected.shown(prompts, self._share(self.expected.rows), rng)
        played, of = self.conversation.batch(episodes, [each.response.row for each in shown])
        if self.expected is not None:
            played = self.expected.settled(played, shown)
        before = self._judged_so_far
        batch = self._settled(replace(played, rewards=self._paid(played)), episodes, of)
        assert batch.rewards is not None
        row_score = row_sums(batch.rewards, played.valid)
        earned = torch.zeros(len(episodes)).index_add(0, of, row_score[: len(of)])
        score = torch.cat([earned[of], row_score[len(of) :]])
        batch = self._described(replace(batch, score=score), of, [each.group for each in shown])
        batch = self._taught(batch, shown)
        calls = len(episodes) if self.reward is None else self._judged_so_far - before
        if self.injection is not None:
            calls += self.injection.critiques(len(prompts))
        injected = sum(episode.injected for episode in episodes)
        labels = injected + int(batch.mask.sum()) * (self.labeller is not None)
        self.count(env_steps=spent, expert_steps=injected, labels=labels, feedback_calls=calls)
        self._tell(episodes, earned, again)
        return batch

    @property
    def _judged_so_far(self) -> int:
        """Replies that the judge who pays was asked about; 0 of one that asks nobody."""
        return getattr(self.reward, "judged", 0)

    def _draw(self, rng: np.random.Generator) -> list[Prompt]:
        """This rank's prompts; none a second time before all had their turn."""
        cases, count = self.cases["train"], self._share(self.prompts)
        rounds = -(-count // len(cases))
        order = np.concatenate([rng.permutation(len(cases)) for _ in range(rounds)])[:count]
        return [cases[i] for i in order]

    def _played(self, actor: Actor, prompts: list[Prompt], rng: np.random.Generator) -> tuple[list[Episode], int, int]:
        """The episodes, the tokens they cost, rejected ones too, and how many episodes were played again."""
        count = len(prompts) * self.replies
        seeds, in_vain = self._seeds(count, rng), 0
        if self.injection is None:
            episodes = self.conversation.play(actor, prompts, seeds, self.replies)
        else:
            how = (seeds, self.replies, rng, self.counters["env_steps"])
            episodes, in_vain = self.injection.play(self.conversation, actor, prompts, *how)
        spent, again = sum(episode.decided for episode in episodes) + in_vain, 0
        for _ in range(self.resamples if self.unfinished == "reject" else 0):
            cut = [row for row, episode in enumerate(episodes) if not episode.finished and not episode.injected]
            if not cut:
                break
            seeds = self._seeds(count, rng)[cut]
            fresh = self.conversation.play(actor, [episodes[row].prompt for row in cut], seeds)
            spent, again = spent + sum(episode.decided for episode in fresh), again + len(fresh)
            for row, episode in zip(cut, fresh, strict=True):
                episodes[row] = episode
        return episodes, spent, again

    def _taught(self, batch: Batch, shown: list[Shown]) -> Batch:
        """With what experts say of it; its last rows are the expected responses `shown`."""
        device = self.trainer.strategy.root_device
        if self.expected is not None:
            batch = self.expected.weighed(batch, shown, device)
        if self.labeller is not None:
            batch = labelled(batch, self.labeller, device)
        if self.expected is not None:
            new, calls, tokens = self.expected.new(shown, self._sum_over_ranks)
            self.counters["feedback_calls"] += calls
            self.counters["labels"] += tokens
            if self.label_buffer is not None and new:
                rows = torch.tensor(new) + len(batch) - len(shown)
                self.label_buffer.add(as_labels(replace(batch[rows], group=None)))
        return batch

    def _settled(self, batch: Batch, episodes: list[Episode], of: Tensor) -> Batch:
        """With what `unfinished` says of replies that were cut."""
        assert batch.rewards is not None
        if self.unfinished in ("replace", "penalty"):
            dialogues = [dialogue for episode in episodes for dialogue in self.conversation.rows(episode)]
            steps, ends = cut_short(dialogues, self.conversation.stops, batch.rewards)
            kept = batch.rewards if self.unfinished == "penalty" else torch.where(steps, 0.0, batch.rewards)
            return replace(batch, rewards=kept + self.unfinished_reward * ends)
        if self.unfinished == "drop":
            stays = torch.ones(len(batch), 1, dtype=torch.bool)
            stays[: len(of), 0] = torch.tensor([episode.finished for episode in episodes])[of]
            assert batch.expert_mask is not None
            expert_mask = batch.expert_mask & stays
            return replace(batch, valid=batch.valid & stays, mask=batch.mask & stays, expert_mask=expert_mask)
        return batch

    def _described(self, batch: Batch, of: Tensor, shown: list[int]) -> Batch:
        """With groups where there are several rows of one, and ranks where a row is an episode."""
        assert batch.score is not None
        if self.replies == 1 and self.expected is None:
            return batch
        group = torch.cat([of // self.replies, torch.tensor(shown, dtype=torch.long)])
        if self.conversation.window is not None:
            return replace(batch, group=group)
        own = ranks(batch.score[: len(of)], group[: len(of)])
        return replace(batch, group=group, rank=torch.cat([own, own.new_full((len(shown),), -1)]))

    # ---- checkpoint

    def rank_state(self) -> dict[str, Any]:
        state = super().rank_state()
        if self.expected is not None:
            state["expected"] = self.expected.state_dict()
        if self.injection is not None:
            state["injection"] = self.injection.state_dict()
        return state

    def load_rank_state(self, state: dict[str, Any]) -> None:
        super().load_rank_state(state)
        if self.expected is not None:
            self.expected.load_state_dict(state["expected"])
        if self.injection is not None:
            self.injection.load_state_dict(state["injection"])

    # ---- what is said of it

    def _tell(self, episodes: list[Episode], earned: Tensor, again: int) -> None:
        """Averages over all ranks, of the replies that are all the learner's; warnings where nothing can be learned."""
        taken = torch.tensor([episode.injected > 0 for episode in episodes])
        averaged = {name: x[~taken] for name, x in ({"return": earned} | self.beside(episodes)).items()}
        if self.injection is not None:
            averaged |= {"taken_over": taken.float(), "return_taken_over": earned[taken]}
        if self.unfinished == "reject":
            averaged["played_again"] = torch.tensor([float(again), *[0.0] * (len(episodes) - 1)])
        if self.replies > 1:
            of_group = earned.view(-1, self.replies)
            averaged["no_spread"] = (of_group.amax(1) == of_group.amin(1)).float()
        sums = torch.stack([torch.stack([x.double().sum(), torch.tensor(float(len(x)))]) for x in averaged.values()])
        totals = self._sum_over_ranks(sums)  # (names, 2)
        means = dict(zip(averaged, (totals[:, 0] / totals[:, 1]).tolist(), strict=True))
        self.statistics = {name: mean for name, mean in means.items() if not math.isnan(mean)}  # of none at all
        if self.statistics.get("finished") == 0:
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
