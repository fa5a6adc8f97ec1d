"""Predictions: a policy's replies to the prompts of a split, as lines of a feedback file that has no feedback yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from data_modules.minibatches import TEST, loader
from data_modules.text.environment import Split
from data_modules.text.episode import Episode
from data_modules.text.evaluation import TextEvaluation
from data_modules.text.rows import as_batch
from data_modules.text.transcript import replies_by_prompt
from data_modules.text.turn_lines import replies_by_turn
from lightning_nlf.batch import Batch, required
from lightning_nlf.maths.steps import best_rows, row_sums

PREDICTED = 64  # prompts per batch


class TextPrediction(TextEvaluation):
    """Predict replies to a text task. Subclasses set the attributes."""

    recorded = "replies"  # name of the file for `records`
    predict_split: Split
    replies: int  # number of replies per prompt
    greedy: bool  # greedy decoding instead of sampling
    best_of: int | None  # samples per prompt; the sample with the highest reward is kept
    _dialogues: list[Episode]  # for predictions by turn; `extra["dialogue"]` of a row is the index
    _unanswered = 0  # number of this rank's prompts in a prediction that got only empty replies

    def predict_dataloader(self) -> list[DataLoader]:
        prompts = self._rank_prompts(self.predict_split)
        firsts = range(0, len(prompts), PREDICTED)
        copies = 1 if self.greedy else self.best_of or self.replies
        self._unanswered, self._dialogues = 0, []

        def sampled() -> Iterator[Batch]:
            rng = self._rng(TEST, 2)
            for first in firsts:
                chunk = prompts[first : first + PREDICTED]
                with torch.no_grad():
                    episodes = self._play(self._actor, rng, chunk, copies, self.greedy)
                    batch = as_batch([self.conversation.dialogue(episode) for episode in episodes])
                    batch = self._rewarded(batch, episodes, torch.arange(len(episodes)))
                place = torch.arange(len(batch)) // copies + first
                batch = replace(batch, group=place)
                if self.conversation.by_turn:
                    batch = batch.with_extra(dialogue=torch.arange(len(batch)) + len(self._dialogues))
                    self._dialogues += episodes
                if self.best_of is not None:
                    rewards = required(batch.rewards, "best_of: nothing scores the replies, so no reply is the best")
                    batch = batch[best_rows(row_sums(rewards, batch.valid), place)]
                yield batch

        return [loader(sampled, len(firsts))]

    def records(self, batch: Batch) -> list[dict[str, Any]]:
        """The lines of a feedback file for a predicted batch: prompts with their replies and scores.

        `meta` has the name of the `run`, and the sampled tokens, so that training on the file uses the same tokens.
        Empty replies are left out, because nobody can judge an empty reply; `meta.empty` is the number of empty
        replies. A prompt with only empty replies gets no line, and a warning after the last batch gives the number of
        such prompts. In a chat of several turns each reply gets its own line, see `replies_by_turn`.
        """
        assert batch.group is not None
        prompts = self._rank_prompts(self.predict_split)
        if self.conversation.by_turn:
            by_prompt = self._by_turns(batch)
        else:
            of_prompts = replies_by_prompt(batch, prompts, self.conversation)
            by_prompt = [[line] if line["responses"] else [] for line in of_prompts]
        lines = [line for of_prompt in by_prompt for line in of_prompt]
        self._unanswered += by_prompt.count([])
        for line in lines:  # a later round samples replies to prompts with the same ids
            line["meta"]["run"] = Path(self.trainer.default_root_dir).resolve().name
        if int(batch.group.max()) + 1 == len(prompts):
            counts = torch.tensor([self._unanswered, len(prompts)], dtype=torch.float64)
            left_out, of = self._sum_over_ranks(counts).tolist()
            if left_out:
                rank_zero_warn(
                    f"{left_out:.0f} of {of:.0f} prompts are missing in {self.recorded}.jsonl: every reply to them was "
                    "empty; raise replies, or train the policy to reply first"
                )
        return lines

    def _by_turns(self, batch: Batch) -> list[list[dict[str, Any]]]:
        """The lines for the dialogues of each prompt."""
        assert batch.group is not None
        lines: dict[int, list[dict[str, Any]]] = {}
        copies = Counter[int]()
        for row, (place, number) in enumerate(zip(batch.group.tolist(), batch.extra["dialogue"].tolist(), strict=True)):
            episode, rewards = self._dialogues[number], None if batch.rewards is None else batch.rewards[row]
            name = f"{episode.prompt.case.id}/{copies[place]}"
            copies[place] += 1
            lines.setdefault(place, []).extend(replies_by_turn(episode, name, rewards, self.conversation))
        return list(lines.values())
