"""What a policy replies to the prompts of a split, as lines of a feedback file that is to be completed."""

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

PREDICTED = 64  # prompts at a time


class TextPrediction(TextEvaluation):
    """Prediction of replies to a text task. A child fills in what stands here."""

    recorded = "replies"  # the file that `records` go to
    predict_split: Split
    replies: int  # to each prompt
    greedy: bool  # the likeliest reply in place of samples
    best_of: int | None  # so many are sampled instead, and the one that is paid most is kept
    _dialogues: list[Episode]  # of a prediction by turns, by `extra["dialogue"]` of their rows
    _unanswered = 0  # prompts of a prediction to which all replies were empty, this rank's

    def predict_dataloader(self) -> list[DataLoader]:
        prompts = self._judged(self.predict_split)
        firsts = range(0, len(prompts), PREDICTED)
        copies = 1 if self.greedy else self.best_of or self.replies
        self._unanswered, self._dialogues = 0, []

        def sampled() -> Iterator[Batch]:
            rng = self._rng(TEST, 2)
            for first in firsts:
                some = prompts[first : first + PREDICTED]
                with torch.no_grad():
                    episodes = self._play(self._actor, rng, some, copies, self.greedy)
                    batch = as_batch([self.conversation.dialogue(episode) for episode in episodes])
                    batch = self._paid(batch, episodes, torch.arange(len(episodes)))
                place = torch.arange(len(batch)) // copies + first
                batch = replace(batch, group=place)
                if self.conversation.by_turn:
                    batch = batch.with_extra(dialogue=torch.arange(len(batch)) + len(self._dialogues))
                    self._dialogues += episodes
                if self.best_of is not None:
                    rewards = required(batch.rewards, "best_of: nobody pays for the replies, so none is the best")
                    batch = batch[best_rows(row_sums(rewards, batch.valid), place)]
                yield batch

        return [loader(sampled, len(firsts))]

    def records(self, batch: Batch) -> list[dict[str, Any]]:
        """Each prompt of a predicted batch with its replies and what they earned: feedback to be completed.

        `meta` keeps the tokens, so that what learns from the file sees what was sampled, and the name of the `run`.
        Nothing can be said of an empty reply: `meta.empty` counts those that are left out. A prompt to which all are
        empty has no line, and behind the last batch a warning says to how many that happened. Of a chat of several
        turns each reply is a line of its own; see `replies_by_turn`.
        """
        assert batch.group is not None
        prompts = self._judged(self.predict_split)
        if self.conversation.by_turn:
            by_prompt = self._by_turns(batch)
        else:
            of_prompts = replies_by_prompt(batch, prompts, self.conversation)
            by_prompt = [[line] if line["responses"] else [] for line in of_prompts]
        lines = [line for of_prompt in by_prompt for line in of_prompt]
        self._unanswered += by_prompt.count([])
        for line in lines:  # a second round samples for the same ids
            line["meta"]["run"] = Path(self.trainer.default_root_dir).resolve().name
        if int(batch.group.max()) + 1 == len(prompts):
            counts = torch.tensor([self._unanswered, len(prompts)], dtype=torch.float64)
            left_out, of = self._sum_over_ranks(counts).tolist()
            if left_out:
                rank_zero_warn(
                    f"{left_out:.0f} of {of:.0f} prompts are not in {self.recorded}.jsonl: every reply to them was "
                    "empty, of which nothing can be said; raise replies, or train the policy to say something first"
                )
        return lines

    def _by_turns(self, batch: Batch) -> list[list[dict[str, Any]]]:
        """The lines of each prompt's dialogues."""
        assert batch.group is not None
        lines: dict[int, list[dict[str, Any]]] = {}
        copies = Counter[int]()
        for row, (place, number) in enumerate(zip(batch.group.tolist(), batch.extra["dialogue"].tolist(), strict=True)):
            episode, rewards = self._dialogues[number], None if batch.rewards is None else batch.rewards[row]
            name = f"{episode.prompt.case.id}/{copies[place]}"
            copies[place] += 1
            lines.setdefault(place, []).extend(replies_by_turn(episode, name, rewards, self.conversation))
        return list(lines.values())
