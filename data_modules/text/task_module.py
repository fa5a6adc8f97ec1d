"""What every DataModule has that plays a text task with the model that is being trained."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from data_modules.judgements.schema import plain
from data_modules.ranges import at_least, sampling
from data_modules.rollout import RolloutDataModule
from data_modules.text.conversation import Conversation
from data_modules.text.environment import Split, TextEnvironment
from data_modules.text.episode import Episode, Prompt
from data_modules.text.prediction import TextPrediction
from data_modules.text.prompts import Chat
from data_modules.text.speech import Speech, speech
from data_modules.text.tokenizer import Tokenizer
from lightning_nlf.batch import Actor, Sampling, Workload
from lightning_nlf.numbers import Count, Positive, PositiveShare, Size

T = TypeVar("T")


class TextTaskDataModule(TextPrediction, RolloutDataModule):
    """A text task whose prompts are encoded and checked, drawn, played, evaluated, predicted and shown.

    A child says how to `collect`, and what its knob `unfinished` makes of replies that `max_new` cut.

    Args:
        task: prompts, rules and demonstrations.
        tokenizer: made from the task's corpus at `setup`, or a model's own.
        prompts: a collection, over all ranks.
        replies: episodes of one prompt, in training and in a prediction.
        max_new: tokens a reply may have.
        resamples: with `unfinished: reject` a cut episode is played again so many times at most, and then kept.
        top_k, top_p, temperature: of sampling alone: the policy and its own temperature stay as they are. The stored
            log-probabilities are of what was sampled from, so the first ratio is not 1.
        evaluation_prompts: of a split, from its first on; None = all. One greedy episode each, and
            `evaluation_replies` sampled ones.
        compare_start: the prompts of `val` are played before training too, once, and the page `changed.html` of the
            exhibits shows the start's and the policy's replies beside each other. A judge that pays is asked for these.
        predict_split: whose prompts `predict` samples `replies` replies to.
        prompt_suffix: text behind every prompt, a control code for instance.
        chat: prompts, their suffix too, go through the tokenizer's chat template, with a system message if wanted; by
            default where it has one. What the environment says is the next message of the user. A prediction then
            writes prompts as messages.
        stop: texts that end a reply as eos does, and are no more of it than that; each is one token.
        best_of: `predict` samples so many replies to each prompt in place of `replies`, and keeps the one that is paid
            most.
        greedy: `predict` gives the likeliest reply to each prompt, one, in place of samples.
        context: tokens that the policy can read; a prompt that leaves no room for a reply is refused at `setup`.
        seed, minibatches, passes, rows_per_batch, tokens_per_batch: of `MinibatchDataModule`.
    """

    unfinished: str  # `reject` plays an episode with a cut reply again

    def __init__(
        self,
        task: TextEnvironment,
        tokenizer: Tokenizer,
        prompts: Size = 16,
        replies: Size = 4,
        max_new: Size = 32,
        resamples: Size = 4,
        top_k: Count = 0,
        top_p: PositiveShare = 1.0,
        temperature: Positive = 1.0,
        evaluation_prompts: Size | None = 64,
        evaluation_replies: Size = 1,
        compare_start: bool = True,
        predict_split: Split = "test",
        prompt_suffix: str = "",
        stop: Sequence[str] = (),
        chat: bool | Chat | None = None,
        best_of: Size | None = None,
        greedy: bool = False,
        context: Size | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        at_least(1, prompts=prompts, replies=replies, max_new=max_new, resamples=resamples, best_of=best_of)
        at_least(1, evaluation_replies=evaluation_replies, evaluation_prompts=evaluation_prompts)
        sampling(top_k, top_p, temperature)
        if greedy and best_of is not None:
            raise ValueError("greedy: there is one likeliest reply, and best_of chooses among several; leave one out")
        self.task, self.tokenizer, self.prompts, self.replies = task, tokenizer, prompts, replies
        self.resamples, self.context, self.best_of, self.greedy = resamples, context, best_of, greedy
        self.evaluation_prompts, self.evaluation_replies = evaluation_prompts, evaluation_replies
        self.compare_start = compare_start
        self.predict_split = predict_split
        self.conversation = Conversation(
            task, tokenizer, max_new, None, prompt_suffix, top_k, top_p, tuple(stop), chat, temperature
        )
        self.cases, self.shown = {}, []
        self.counters["feedback_calls"] = 0
        self._warned: set[str] = set()

    @property
    def stops(self) -> tuple[int, ...]:
        """The ids that end a reply, eos first; from `setup` on."""
        return self.conversation.stops

    def setup(self, stage: str) -> None:
        """Raises ValueError: a prompt that cannot be encoded or has no room, two of one id, a text of `stop` that is
        not one token, a chat template for single turns and a task of several.
        """
        if self.cases:
            return
        self.tokenizer.fit(self.task.corpus())
        _ = self.conversation.stops  # before anything is played
        self.check_tokenizer()
        splits: tuple[Split, ...] = ("train", "val", "test")
        self.cases = {split: self._prompts_of(split) for split in splits}
        for prompt in self.cases["train"][:1]:
            self.conversation.check_turns(prompt.case)

    def check_tokenizer(self) -> None:
        """What is refused once the tokenizer is made, before prompts are encoded: `chat` without a template."""
        _ = self.conversation.format.template

    def speech(self, system: str | None = None) -> Speech:
        """How to talk with the model.  Raises ValueError: a system message without a chat template."""
        if not self.tokenizer.ready:
            self.setup("predict")
        return speech(self.conversation.format, self.stops, system)

    # ---- what a run is about

    @property
    def longest_row(self) -> int:
        """Tokens that a row may have at least: of the longest prompt and a reply to it."""
        return max(len(prompt.ids) for split in self.cases.values() for prompt in split) + self.conversation.max_new

    @property
    def workload(self) -> Workload:
        """As if every dialogue had all turns; without what the environment says between them."""
        drawn, judged = self.cases["train"], self.cases["val"][: self.evaluation_prompts]
        episodes, turns = self.prompts * self.group_size, self.task.turns
        rows = episodes if self.conversation.window is None else episodes * turns
        new, mean = self.conversation.max_new * turns, sum(len(prompt.ids) for prompt in drawn) / len(drawn)
        validation = Sampling(sum(len(prompt.ids) for prompt in judged), len(judged) * new)
        return Workload(
            rows,
            round(rows * mean + episodes * new),
            self.passes,
            collection=Sampling(round(self.prompts * mean), episodes * new),  # what replies share is read once
            evaluation=validation * (1 + self.evaluation_replies),
        )

    @property
    def data_digest(self) -> str:
        """SHA-256 of the ids and prompts of all splits, in their order."""
        content = [
            [split, prompt.case.id, plain(prompt.case.prompt)] for split in self.cases for prompt in self.cases[split]
        ]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    # ---- a collection

    @property
    def group_size(self) -> int:
        """Episodes of one prompt in a collection, next to each other."""
        return self.replies

    def _draw(self, rng: np.random.Generator) -> list[Prompt]:
        """This rank's prompts; none a second time before all had their turn."""
        return drawn(self.cases["train"], self._share(self.prompts), rng)

    def _played(self, actor: Actor, prompts: list[Prompt], rng: np.random.Generator) -> tuple[list[Episode], int, int]:
        """The episodes, the tokens they cost, rejected ones too, and how many episodes were played again."""
        count = len(prompts) * self.replies
        episodes, in_vain = self._begun(actor, prompts, self._seeds(count, rng), rng)
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

    def _begun(
        self, actor: Actor, prompts: list[Prompt], seeds: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[Episode], int]:
        """`replies` episodes of each prompt, next to each other, and how many tokens were said in vain."""
        return self.conversation.play(actor, prompts, seeds, self.replies), 0

    # ---- what is said of it

    def _tell(self, episodes: list[Episode], earned: Tensor, again: int) -> None:
        """Averages over all ranks; warnings where nothing can be learned."""
        averaged = self._averaged(episodes, earned)
        if self.unfinished == "reject":
            averaged["played_again"] = torch.tensor([float(again), *[0.0] * (len(episodes) - 1)])
        if self.group_size > 1 and not bool(earned.isnan().any()):
            of_group = earned.view(-1, self.group_size)
            averaged["no_spread"] = (of_group.amax(1) == of_group.amin(1)).float()
        nothing = torch.zeros(2, dtype=torch.float64)
        sums = torch.stack([nothing if bool(x.isnan().any()) else _sum_and_count(x) for x in averaged.values()])
        totals = self._sum_over_ranks(sums)  # (names, 2)
        means = dict(zip(averaged, (totals[:, 0] / totals[:, 1]).tolist(), strict=True))
        self.statistics = {name: mean for name, mean in means.items() if not math.isnan(mean)}  # of none at all
        if any(episode.cut for episode in episodes):
            self._warn_once(
                "some dialogues ended because the context has no room for another reply: lower max_new, or train a "
                "model with a larger context"
            )
        if self.statistics.get("finished") == 0:
            limit = self.conversation.max_new
            self._warn_once(f"every reply was cut at {limit} tokens: raise max_new, or start from weights that stop")
        if self.statistics.get("no_spread") == 1:
            self._warn_once(
                "in every group all replies earned the same, so a group baseline leaves nothing to learn: raise "
                "replies, or start from weights that are right sometimes"
            )

    def _averaged(self, episodes: list[Episode], earned: Tensor) -> dict[str, Tensor]:
        """What is averaged over episodes, by name; `earned` is (episodes,)."""
        return {"return": earned} | self.beside(episodes)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(message)


def drawn(things: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """So many of them; none a second time before all had their turn."""
    rounds = -(-count // len(things))
    order = np.concatenate([rng.permutation(len(things)) for _ in range(rounds)])[:count]
    return [things[i] for i in order]


def _sum_and_count(x: Tensor) -> Tensor:
    return torch.stack([x.double().sum(), torch.tensor(float(len(x)), dtype=torch.float64)])
