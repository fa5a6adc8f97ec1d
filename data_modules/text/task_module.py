"""Base of DataModules in which the policy in training plays a text task."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from data_modules.judgements.schema import plain
from data_modules.ranges import at_least, sampling
from data_modules.rollout import RolloutDataModule
from data_modules.text.conversation import Conversation
from data_modules.text.environment import Split, TextEnvironment, context_of, max_new_of
from data_modules.text.episode import Episode, Prompt
from data_modules.text.prediction import TextPrediction
from data_modules.text.prompts import Chat
from data_modules.text.speech import Speech, speech
from data_modules.text.tokenizer import Tokenizer, WordTokenizer
from lightning_nlf.batch import Actor, Sampling, Workload
from lightning_nlf.numbers import Count, Positive, PositiveShare, Size

T = TypeVar("T")


class TextTaskDataModule(TextPrediction, RolloutDataModule):
    """A text task for a policy in training: encode and check prompts, then sample, evaluate and predict replies.

    Subclasses implement `collect` and have a setting `unfinished`, which determines what happens to replies cut off at
    `max_new`.

    Args:
        task: the text task, with prompts, a rule that scores replies, and demonstrations.
        tokenizer: tokenizer of the model, either pretrained or built from the task's corpus at `setup`. By default the
            one in the model's folder, or a `WordTokenizer` if the model has none.
        prompts: number of prompts per collection, over all ranks.
        replies: number of episodes per prompt, in training and in predictions; by default 4, or 1 in a run whose module
            has a value network, and so needs no group as a baseline.
        max_new: maximum number of tokens in a reply; by default `max_new` of a task that is `Sized`, else 32.
        resamples: with `unfinished: reject`, how often an episode with a cut reply is sampled again before it is kept.
        top_k, top_p, temperature: sampling settings. The policy and its own temperature do not change. The stored
            log-probabilities are those of the changed sampling distribution, so the first importance ratio is not 1.
        evaluation_prompts: evaluate on only the first so many prompts of a split; None = all. Each prompt gets one
            greedy reply, and `evaluation_replies` sampled replies.
        compare_start: sample replies to the `val` prompts once before training. The page `changed.html` then shows the
            replies of the start and of the policy side by side. A judge as `reward` scores these replies too.
        predict_split: split whose prompts `predict` replies to, with `replies` samples per prompt.
        prompt_suffix: text added to the end of every prompt, for example a control code.
        chat: use the tokenizer's chat template for prompts with their suffix, with a system message if given. By
            default the template is used if the tokenizer has one. With a template the environment's text is the user's
            next message, and predictions have prompts as messages.
        stop: further stop tokens, each given as a text of exactly one token. They end a reply as eos does, and are not
            part of the reply's text.
        best_of: number of samples per prompt in `predict`, in place of `replies`; only the sample with the highest
            reward is kept.
        greedy: `predict` gives one greedy reply to each prompt.
        context: number of tokens that the policy can read; by default `context` of a task that is `Sized`. A prompt
            that leaves no room for a reply is an error at `setup`.
        seed, minibatches, passes, rows_per_batch, tokens_per_batch: see `MinibatchDataModule`.
    """

    unfinished: str  # `reject`: an episode with a cut reply is sampled again

    def __init__(
        self,
        task: TextEnvironment,
        tokenizer: Tokenizer | None = None,
        prompts: Size = 16,
        replies: Size | None = None,
        max_new: Size | None = None,
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
        tokenizer = tokenizer or WordTokenizer()
        max_new = max_new_of(task) if max_new is None else max_new
        context = context_of(task) if context is None else context
        at_least(1, prompts=prompts, replies=replies, max_new=max_new, resamples=resamples, best_of=best_of)
        at_least(1, evaluation_replies=evaluation_replies, evaluation_prompts=evaluation_prompts)
        sampling(top_k, top_p, temperature)
        if greedy and best_of is not None:
            raise ValueError("greedy: it gives one reply to a prompt, and best_of chooses among several; leave one out")
        self.task, self.tokenizer, self.prompts = task, tokenizer, prompts
        self.replies = 4 if replies is None else replies
        self.resamples, self.context, self.best_of, self.greedy = resamples, context, best_of, greedy
        self.evaluation_prompts, self.evaluation_replies = evaluation_prompts, evaluation_replies
        self.compare_start = compare_start
        self.predict_split = predict_split
        self.conversation = Conversation(
            task, tokenizer, max_new, None, prompt_suffix, top_k, top_p, tuple(stop), chat, temperature
        )
        self.cases, self.transcript_rows = {}, []
        self.counters["feedback_calls"] = 0
        self._warned: set[str] = set()

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"max_new": self.conversation.max_new}

    def corpus_ahead(self) -> Iterable[str] | None:
        return self.task.corpus()

    @property
    def stops(self) -> tuple[int, ...]:
        """The token ids that end a reply, eos first; available after `setup`."""
        return self.conversation.stops

    def setup(self, stage: str) -> None:
        """Raises ValueError: a prompt cannot be encoded or leaves no room for a reply; two prompts have the same id; a
        text of `stop` is not one token; or the task has several turns, and the chat template supports only one.
        """
        if self.cases:
            return
        self.tokenizer.fit(self.task.corpus())
        _ = self.conversation.stops  # raises its error before any episode
        self.check_tokenizer()
        splits: tuple[Split, ...] = ("train", "val", "test")
        self.cases = {split: self._prompts_of(split) for split in splits}
        for prompt in self.cases["train"][:1]:
            self.conversation.check_turns(prompt.case)

    def check_tokenizer(self) -> None:
        """Check the tokenizer before prompts are encoded.  Raises ValueError: `chat` is set without a template."""
        _ = self.conversation.format.template

    def speech(self, system: str | None = None) -> Speech:
        """The settings for a chat with the model.  Raises ValueError: `system` is given without a chat template."""
        if not self.tokenizer.ready:
            self.setup("predict")
        return speech(self.conversation.format, self.stops, system)

    # ---- size and identity of the data

    @property
    def longest_row(self) -> int:
        """Number of tokens in the longest prompt with a reply of `max_new` tokens."""
        return max(len(prompt.ids) for split in self.cases.values() for prompt in split) + self.conversation.max_new

    @property
    def workload(self) -> Workload:
        """Estimate the work of an iteration. Every dialogue counts with all turns, and with empty answers."""
        train, validated = self.cases["train"], self.cases["val"][: self.evaluation_prompts]
        episodes, turns = self.prompts * self.group_size, self.task.turns
        rows = episodes if self.conversation.window is None else episodes * turns
        new, mean = self.conversation.max_new * turns, sum(len(prompt.ids) for prompt in train) / len(train)
        validation = Sampling(sum(len(prompt.ids) for prompt in validated), len(validated) * new)
        return Workload(
            rows,
            round(rows * mean + episodes * new),
            self.passes,
            collection=Sampling(round(self.prompts * mean), episodes * new),  # replies to a prompt share its reading
            evaluation=validation * (1 + self.evaluation_replies),
        )

    @property
    def data_digest(self) -> str:
        """SHA-256 of the case ids and prompts of all splits, in order."""
        content = [
            [split, prompt.case.id, plain(prompt.case.prompt)] for split in self.cases for prompt in self.cases[split]
        ]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    # ---- a collection

    @property
    def group_size(self) -> int:
        """Number of episodes per prompt in a collection. Episodes of one prompt are next to each other."""
        return self.replies

    def _draw(self, rng: np.random.Generator) -> list[Prompt]:
        """Draw this rank's prompts for a collection. No prompt repeats before all prompts have been used."""
        return draw_items(self.cases["train"], self._share(self.prompts), rng)

    def _sample_episodes(
        self, actor: Actor, prompts: list[Prompt], rng: np.random.Generator
    ) -> tuple[list[Episode], int, int]:
        """Sample episodes; also return the number of tokens, including rejected episodes, and of resampled episodes."""
        count = len(prompts) * self.replies
        episodes, discarded = self._begun(actor, prompts, self._seeds(count, rng), rng)
        spent, again = sum(episode.decided for episode in episodes) + discarded, 0
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
        """Play `replies` episodes of each prompt, next to each other; also return the number of discarded tokens."""
        return self.conversation.play(actor, prompts, seeds, self.replies), 0

    # ---- logs

    def _log_collection(self, episodes: list[Episode], earned: Tensor, again: int) -> None:
        """Store averages over all ranks in `statistics`, and warn if the policy cannot learn from the episodes."""
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
        self.statistics = {name: mean for name, mean in means.items() if not math.isnan(mean)}  # NaN: in no episode
        if any(episode.cut for episode in episodes):
            self._warn_once(
                "some dialogues ended because the context had no room for another reply: lower max_new, or train a "
                "model with a larger context"
            )
        if self.statistics.get("finished") == 0:
            limit = self.conversation.max_new
            self._warn_once(
                f"every reply was cut off at {limit} tokens: raise max_new, or start from a policy that ends replies"
            )
        if self.statistics.get("no_spread") == 1:
            self._warn_once(
                "in every group all replies have the same reward, so there is nothing to learn with a group baseline: "
                "raise replies, or start from a policy that is sometimes right"
            )

    def _averaged(self, episodes: list[Episode], earned: Tensor) -> dict[str, Tensor]:
        """The metrics of the episodes to average, by name, (episodes,) each.  earned: (episodes,) rewards."""
        return {"return": earned} | self.episode_metrics(episodes)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(message)


def draw_items(items: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """Draw `count` random items. No item repeats before all items have been drawn."""
    rounds = -(-count // len(items))
    order = np.concatenate([rng.permutation(len(items)) for _ in range(rounds)])[:count]
    return [items[i] for i in order]


def _sum_and_count(x: Tensor) -> Tensor:
    return torch.stack([x.double().sum(), torch.tensor(float(len(x)), dtype=torch.float64)])
