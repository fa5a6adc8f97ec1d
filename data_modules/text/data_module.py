"""Fresh replies to the prompts of a text task for every epoch, whatever the task and however many turns it has."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.groups import ranks
from data_modules.label_buffer import as_labels
from data_modules.ranges import at_least
from data_modules.rollout import LabelledRollouts
from data_modules.text.checks import refuse_other_ids, refuse_short_context
from data_modules.text.environment import TextEnvironment
from data_modules.text.episode import Episode, Prompt
from data_modules.text.expected import ExpectedResponses, Shown
from data_modules.text.injection import Injection
from data_modules.text.labelling import densities, labelled
from data_modules.text.reply_judge import ReplyJudge
from data_modules.text.task_module import TextTaskDataModule
from data_modules.text.unfinished import Unfinished, drop_cut_episodes, repay_cut_replies
from lightning_nlf.batch import Actor, Batch, Scorer, TextExpert
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.numbers import Number, Size


class TextDataModule(TextTaskDataModule, LabelledRollouts):
    """Plays a text task with the model that is being trained: prompts, G replies to each, and what they earn.

    Args:
        task, tokenizer, prompts, replies, max_new …: of `TextTaskDataModule`; replies to a prompt share a `group`.
        reward: who pays in place of the task's rule: a `Scorer`, such as a reward model, by tokens, or a `ReplyJudge`,
            such as a model behind an endpoint, by text. The rule is logged as `true_reward`.
        window: turns that the policy sees, its own included, for tasks whose last words say all: 1 where they do. A
            row is then one turn, and `extra` says of which `episode` and which `part` of it. Else a dialogue is a row.
        unfinished: what happens to an episode with a reply that `max_new` cut: `keep`: the rule judges it as it is;
            `reject`: it is played again, `resamples` times at most, and then kept; `replace`: such a reply earns
            `unfinished_reward` and nothing else; `penalty`: that is added to what it earns; `drop`: nobody learns from
            the episode. Its rows stay, without a valid step, so that groups, minibatches and ranks remain even.
        expected: what the teacher would have said to some of the prompts, as rows of their own. With `injection` and
            `labeller` for tasks of one turn.
        injection: an expert takes over in some of the replies.
        labeller: an expert that says of every token which it would have chosen; with it, imitation may compare
            distributions.
        label_buffer: of `LabelledRollouts`; remembers expected responses.

    `labels` counts what experts decided: tokens injected, tokens labelled, and expected responses, each when it is
    first shown, as the teacher writes it once. `feedback_calls` counts expected responses so, critiques that say where
    an expert takes over, and replies that the rule or a `ReplyJudge` scores.
    """

    def __init__(
        self,
        task: TextEnvironment,
        reward: Scorer | ReplyJudge | None = None,
        window: Size | None = None,
        unfinished: Unfinished = "keep",
        unfinished_reward: Number = -1.0,
        expected: ExpectedResponses | None = None,
        injection: Injection | None = None,
        labeller: TextExpert | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(task=task, **kwargs)
        self.conversation = replace(self.conversation, window=window)
        kind = type(task).__name__
        at_least(1, window=window)
        if window is not None and task.turns == 1:
            raise ValueError(f"window: got {window} for a task of one turn, which has nothing to leave out; drop it")
        for name, knob in (("expected", expected), ("labeller", labeller)):
            if knob is not None and task.turns > 1:
                raise ValueError(f"{name}: for tasks of one turn; {kind} has {task.turns}: leave it out")
        if injection is not None:
            injection.check(task, self.replies, self.conversation.max_new)
        if self.label_buffer is not None and expected is None:
            raise ValueError("label_buffer: it remembers expected responses; give `expected`")
        self.reward, self.expected, self.injection, self.labeller = reward, expected, injection, labeller
        self.unfinished, self.unfinished_reward = unfinished, unfinished_reward

    def check_tokenizer(self) -> None:
        """Raises ValueError: as of `TextTaskDataModule`; a `reward` or an expert of other ids."""
        super().check_tokenizer()
        for name, model in self._models.items():
            refuse_other_ids(name, model, self.tokenizer.digest)

    def setup(self, stage: str) -> None:
        """Raises ValueError: as `TextTaskDataModule` and `check_tokenizer`; fewer expected responses than asked; a row
        that `reward` or an expert cannot read.
        """
        if self.cases:
            return
        super().setup(stage)
        if self.expected is not None:
            self.expected.load(self.task, self.tokenizer, self.cases["train"])
        if isinstance(self.reward, ReplyJudge):
            self.reward.check([prompt.case for split in self.cases.values() for prompt in split])
        for name, model in self._models.items():
            refuse_short_context(name, model, self.longest_row)

    @property
    def _models(self) -> dict[str, object]:
        """Who else reads the rows, by the knob; None where there is nobody."""
        return {
            "reward": self.reward,
            "injection.expert": self.injection and self.injection.expert,
            "labeller": self.labeller,
            "expected.as_if": self.expected and self.expected.as_if,
        }

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
            played = self.expected.settled(played, shown, of < 0)
        judged, place = (episodes, of) if self.expected is None else self.expected.judged(episodes, shown, of)
        batch = self._settled(self._paid(played, judged, place), episodes, of)
        earned = torch.full((len(episodes),), math.nan)
        if batch.rewards is not None:
            row_score, of_episode = row_sums(batch.rewards, played.valid), of >= 0
            earned = torch.zeros(len(episodes)).index_add(0, of[of_episode], row_score[of_episode])
            batch = replace(batch, score=row_score.masked_scatter(of_episode, earned[of[of_episode]]))
        batch = self._described(batch, of, [each.group for each in shown])
        batch = self._taught(batch, shown, of < 0)
        by_rule = self.reward is None and batch.rewards is not None
        calls = len(episodes) if by_rule else len(judged) if isinstance(self.reward, ReplyJudge) else 0
        if self.injection is not None:
            calls += self.injection.critiques(len(prompts))
        injected = sum(episode.injected for episode in episodes)
        labels = injected + int(batch.mask.sum()) * (self.labeller is not None)
        self.count(env_steps=spent, expert_steps=injected, labels=labels, feedback_calls=calls)
        self._tell(episodes, earned, again)
        return batch

    def _begun(
        self, actor: Actor, prompts: list[Prompt], seeds: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[Episode], int]:
        if self.injection is None:
            return super()._begun(actor, prompts, seeds, rng)
        experience = self.counters["env_steps"]
        return self.injection.play(self.conversation, actor, prompts, seeds, self.replies, rng, experience)

    def _settled(self, batch: Batch, episodes: list[Episode], of: Tensor) -> Batch:
        """With what `unfinished` says of replies that were cut.  of: (B,) the episode of each row, −1 of none."""
        if self.unfinished in ("replace", "penalty"):
            instead = self.unfinished == "replace"
            return repay_cut_replies(batch, self.conversation, episodes, of, self.unfinished_reward, instead)
        return drop_cut_episodes(batch, episodes, of) if self.unfinished == "drop" else batch

    def _described(self, batch: Batch, of: Tensor, groups: list[int]) -> Batch:
        """With groups where there are several rows of one, and ranks where a row is an episode.

        Args: of: (B,) the episode of each row, −1 of none; groups: of these, in their order.
        """
        if self.replies == 1 and self.expected is None:
            return batch
        of_episode = of >= 0
        group = (of // self.replies).masked_scatter(~of_episode, torch.tensor(groups, dtype=torch.long))
        if self.conversation.window is not None or batch.score is None:
            return replace(batch, group=group)
        order = ranks(batch.score[of_episode], group[of_episode])
        return replace(batch, group=group, rank=torch.full_like(group, -1).masked_scatter(of_episode, order))

    def _taught(self, batch: Batch, shown: list[Shown], expected: Tensor) -> Batch:
        """With what experts say of it.  expected: (B,) bool, the rows that are those `shown`."""
        device = self.trainer.strategy.root_device
        if self.expected is not None and self.expected.as_if is not None:
            joined = batch.valid & expected[:, None]
            batch = replace(batch, log_probs=densities(batch, self.expected.as_if, joined, device))
        if self.labeller is not None:
            batch = labelled(batch, self.labeller, device)
        if self.expected is not None:
            new, calls, tokens = self.expected.new(shown, self._sum_over_ranks)
            self.counters["feedback_calls"] += calls
            self.counters["labels"] += tokens
            if self.label_buffer is not None and new:
                self.label_buffer.add(as_labels(replace(batch[expected.nonzero()[new, 0]], group=None)))
        return batch

    # ---- checkpoint

    def rank_state(self) -> dict[str, Any]:
        teachers = (("expected", self.expected), ("injection", self.injection))
        return super().rank_state() | {name: part.state_dict() for name, part in teachers if part is not None}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        super().load_rank_state(state)
        for name, part in (("expected", self.expected), ("injection", self.injection)):
            if part is not None:
                part.load_state_dict(state[name])

    # ---- what is said of it

    def _averaged(self, episodes: list[Episode], earned: Tensor) -> dict[str, Tensor]:
        """Of the replies that are all the learner's; the others beside them."""
        taken = torch.tensor([episode.injected > 0 for episode in episodes])
        averaged = {name: x[~taken] for name, x in super()._averaged(episodes, earned).items()}
        if self.injection is not None:
            averaged |= {"taken_over": taken.float(), "return_taken_over": earned[taken]}
        return averaged
