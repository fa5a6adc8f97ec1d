"""Rollouts of a text task: in every epoch the policy samples new replies to prompts, in one turn or several."""

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
from data_modules.text.expected import ExpectedResponses, PlacedResponse
from data_modules.text.injection import Injection
from data_modules.text.labelling import densities, labelled
from data_modules.text.reply_judge import ReplyJudge
from data_modules.text.task_module import TextTaskDataModule
from data_modules.text.unfinished import Unfinished, drop_cut_episodes, repay_cut_replies
from lightning_nlf.batch import Actor, Batch, Scorer, TextExpert
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.numbers import Number, Size


class TextDataModule(TextTaskDataModule, LabelledRollouts):
    """Sample replies to a text task from the policy in training, G replies per prompt, with their rewards.

    Args:
        task, tokenizer, prompts, replies, max_new …: see `TextTaskDataModule`; replies to one prompt share a `group`.
        reward: source of the rewards, in place of the task's rule: a `Scorer`, such as a reward model, which reads
            tokens, or a `ReplyJudge`, such as a model behind an endpoint, which reads text. The score by the task's
            rule is then logged as `true_reward`.
        window: number of turns that the policy sees, including the current turn. Use 1 if the environment's last text
            contains all that the policy needs. A row is then one turn, and `extra` has the index of its `episode` and
            its place in the episode (`part`). None = a row is a whole dialogue.
        unfinished: what to do with an episode in which a reply was cut off at `max_new`. `keep`: score the episode as
            usual. `reject`: sample the episode again, at most `resamples` times, then keep it. `replace`: the cut reply
            earns `unfinished_reward` and nothing else. `penalty`: add `unfinished_reward` to the reward of the cut
            reply. `drop`: learn nothing from the episode. Its rows stay in the batch without valid steps, so that
            groups, minibatches and ranks stay even.
        expected: adds rows with the teacher's expected responses to some of the prompts. `expected` and `labeller` work
            only for tasks of one turn; `expected` can be combined with `injection`.
        injection: settings for an expert that takes over within some of the replies.
        labeller: an expert that gives its distribution for every token of the learner, so that imitation can compare
            distributions.
        label_buffer: buffer that stores expected responses for imitation, see `LabelledRollouts`.

    `labels` counts the experts' decisions: injected tokens, labelled tokens, and the tokens of expected responses. The
    teacher writes an expected response once, so it counts once, when it is first used. `feedback_calls` counts expected
    responses in the same way, as well as critiques that place an injection, and replies scored by the rule or a
    `ReplyJudge`.
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
            raise ValueError(f"window: got {window} for a task of one turn, which has no earlier turns; leave it out")
        for name, knob in (("expected", expected), ("labeller", labeller)):
            if knob is not None and task.turns > 1:
                raise ValueError(f"{name}: only for tasks of one turn; {kind} has {task.turns}: leave it out")
        if injection is not None:
            injection.check(task, self.replies, self.conversation.max_new)
        if self.label_buffer is not None and expected is None:
            raise ValueError("label_buffer: it stores expected responses; give `expected`, or leave label_buffer out")
        self.reward, self.expected, self.injection, self.labeller = reward, expected, injection, labeller
        self.unfinished, self.unfinished_reward = unfinished, unfinished_reward

    def check_tokenizer(self) -> None:
        """Raises ValueError: as in `TextTaskDataModule`; or `reward` or an expert has a different tokenizer."""
        super().check_tokenizer()
        for name, model in self._models.items():
            refuse_other_ids(name, model, self.tokenizer.digest)

    def setup(self, stage: str) -> None:
        """Raises ValueError: as in `TextTaskDataModule` and `check_tokenizer`; or there are too few expected responses;
        or a row is too long for `reward` or an expert.
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
        """The models besides the policy that read the rows, by the name of their setting; None if not given."""
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
        episodes, spent, again = self._sample_episodes(actor, prompts, rng)
        responses = [] if self.expected is None else self.expected.draw(prompts, self._share(self.expected.rows), rng)
        rows, of = self.conversation.batch(episodes, [placed.response.row for placed in responses])
        if self.expected is not None:
            rows = self.expected.mask_labels(rows, responses, of < 0)
        scorable, place = (episodes, of) if self.expected is None else self.expected.scorable(episodes, responses, of)
        batch = self._settled(self._rewarded(rows, scorable, place), episodes, of)
        earned = torch.full((len(episodes),), math.nan)
        if batch.rewards is not None:
            row_score, of_episode = row_sums(batch.rewards, rows.valid), of >= 0
            earned = torch.zeros(len(episodes)).index_add(0, of[of_episode], row_score[of_episode])
            batch = replace(batch, score=row_score.masked_scatter(of_episode, earned[of[of_episode]]))
        batch = self._described(batch, of, [placed.group for placed in responses])
        batch = self._taught(batch, responses, of < 0)
        by_rule = self.reward is None and batch.rewards is not None
        calls = len(episodes) if by_rule else len(scorable) if isinstance(self.reward, ReplyJudge) else 0
        if self.injection is not None:
            calls += self.injection.critiques(len(prompts))
        injected = sum(episode.injected for episode in episodes)
        labels = injected + int(batch.mask.sum()) * (self.labeller is not None)
        self.count(env_steps=spent, expert_steps=injected, labels=labels, feedback_calls=calls)
        self._log_collection(episodes, earned, again)
        return batch

    def _begun(
        self, actor: Actor, prompts: list[Prompt], seeds: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[Episode], int]:
        if self.injection is None:
            return super()._begun(actor, prompts, seeds, rng)
        experience = self.counters["env_steps"]
        return self.injection.play(self.conversation, actor, prompts, seeds, self.replies, rng, experience)

    def _settled(self, batch: Batch, episodes: list[Episode], of: Tensor) -> Batch:
        """Apply the setting `unfinished` to cut replies.  of: (B,) the episode of each row, −1 = none."""
        if self.unfinished in ("replace", "penalty"):
            instead = self.unfinished == "replace"
            return repay_cut_replies(batch, self.conversation, episodes, of, self.unfinished_reward, instead)
        return drop_cut_episodes(batch, episodes, of) if self.unfinished == "drop" else batch

    def _described(self, batch: Batch, of: Tensor, groups: list[int]) -> Batch:
        """Add groups to the batch if a prompt has several rows, and ranks if each row is an episode.

        Args: of: (B,) the episode of each row, −1 = none; groups: the groups of the rows without an episode, in order.
        """
        if self.replies == 1 and self.expected is None:
            return batch
        of_episode = of >= 0
        group = (of // self.replies).masked_scatter(~of_episode, torch.tensor(groups, dtype=torch.long))
        if self.conversation.window is not None or batch.score is None:
            return replace(batch, group=group)
        order = ranks(batch.score[of_episode], group[of_episode])
        return replace(batch, group=group, rank=torch.full_like(group, -1).masked_scatter(of_episode, order))

    def _taught(self, batch: Batch, responses: list[PlacedResponse], expected: Tensor) -> Batch:
        """Add the experts' labels to the batch.  expected: (B,) bool, True for the rows of `responses`."""
        device = self.trainer.strategy.root_device
        if self.expected is not None and self.expected.as_if is not None:
            joined = batch.valid & expected[:, None]
            batch = replace(batch, log_probs=densities(batch, self.expected.as_if, joined, device))
        if self.labeller is not None:
            batch = labelled(batch, self.labeller, device)
        if self.expected is not None:
            new, calls, tokens = self.expected.new(responses, self._sum_over_ranks)
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

    # ---- metrics

    def _averaged(self, episodes: list[Episode], earned: Tensor) -> dict[str, Tensor]:
        """Metrics of replies without an injection. `taken_over` and `return_taken_over` are about the rest."""
        injected = torch.tensor([episode.injected > 0 for episode in episodes])
        averaged = {name: x[~injected] for name, x in super()._averaged(episodes, earned).items()}
        if self.injection is not None:
            averaged |= {"taken_over": injected.float(), "return_taken_over": earned[injected]}
        return averaged
