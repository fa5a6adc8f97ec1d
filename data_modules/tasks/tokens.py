"""Toy dialogue task over a small vocabulary, which shows text in the same batch and objectives as control."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_modules.groups import ranks
from data_modules.label_buffer import as_labels
from data_modules.ranges import shares
from data_modules.rollout import LabelledRollouts
from data_modules.text.rows import EXPERT, LEARNER, Segment, as_batch
from lightning_nlf.batch import Actor, Batch, stack_rows
from lightning_nlf.numbers import Share, Size

STOP, ASK = 0, 1  # STOP ends a reply, ASK is the environment's second question
FIRST_SYMBOL = 2
MAX_NEW = 3  # maximum number of tokens in a reply; a right reply has two

Dialogue = list[Segment]  # the prompt, a reply, the question, a reply


class TokenTaskDataModule(LabelledRollouts):
    """A dialogue about a prompt of two to four symbols, with two replies from the policy.

    The right first reply is the prompt's first symbol and stop. After the environment's question, the right reply is
    the prompt's last symbol and stop.

    A dialogue scores at most 1: each of its two replies earns .25 for the symbol, and .25 for stopping right after it.
    Id 0 is the stop token, 1 is the environment's question, and all other ids are symbols.

    Args:
        vocabulary: number of ids.
        prompts: number of prompts per collection, over all ranks.
        replies: number of dialogues per prompt, which form a `group`.
        feedback: whether the teacher gives each dialogue its score, or only ranks each group, with ties. With ranks the
            reward is the share of the group's other dialogues that a dialogue beats; a tie counts half.
        expected_share: share of the prompts for which the teacher also gives the expected dialogue, as a row of the
            same group that only imitation learns from.
        evaluation_prompts: number of evaluation prompts, with one dialogue each. Their symbols come from a separate
            random stream.
    """

    speaks = True
    stops = (STOP,)
    vocabulary = 0

    def __init__(
        self,
        vocabulary: Size = 12,
        prompts: Size = 16,
        replies: Size = 4,
        feedback: Literal["score", "comparison"] = "score",
        expected_share: Share = 0.0,
        evaluation_prompts: Size = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if vocabulary <= FIRST_SYMBOL:
            raise ValueError(f"vocabulary: got {vocabulary}, must be above {FIRST_SYMBOL}")
        if replies < 2 and feedback == "comparison":
            raise ValueError(f"replies: got {replies}, a comparison needs at least 2")
        shares(expected_share=expected_share)
        self.vocabulary, self.prompts, self.replies = vocabulary, prompts, replies
        self.feedback, self.expected_share, self.evaluation_prompts = feedback, expected_share, evaluation_prompts
        self.counters["feedback_calls"] = 0
        self.transcript: list[Dialogue] = []

    @property
    def sizes(self) -> dict[str, int]:
        return {"vocabulary": self.vocabulary}

    # ---- collection

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        self.refuse_too_few("prompts", self.prompts, "groups")
        prompts = self._draw(self._share(self.prompts), rng)
        repeated = [prompt for prompt in prompts for _ in range(self.replies)]
        learner = as_batch(self._converse(actor, repeated, deterministic=False))
        group = torch.arange(len(prompts)).repeat_interleave(self.replies)
        assert learner.rewards is not None
        score = learner.rewards.sum(1)
        learner = replace(learner, group=group, score=score, rank=ranks(score, group))
        if self.feedback == "comparison":
            learner = replace(learner, rewards=paid_by_rank(learner))
        with_expected = int(round(self.expected_share * len(prompts)))
        batch = self._with_expected(learner, prompts[:with_expected])
        comparisons = len(prompts) if self.feedback == "comparison" else len(score)
        self._account(batch, score, calls=comparisons + with_expected)
        return batch

    def _with_expected(self, learner: Batch, prompts: list[list[int]]) -> Batch:
        """The learner's rows, followed by the expected dialogue of each of `prompts`."""
        if not prompts:
            return learner
        expected = as_batch([expected_dialogue(prompt) for prompt in prompts])
        unranked = torch.full((len(prompts),), -1)
        score = torch.ones(len(prompts))
        if self.label_buffer is not None:
            self.label_buffer.add(as_labels(expected))
        return stack_rows([learner, replace(expected, group=torch.arange(len(prompts)), score=score, rank=unranked)])

    def _account(self, batch: Batch, score: Tensor, calls: int) -> None:
        assert batch.expert_mask is not None
        labels = int(batch.expert_mask.sum())
        self.count(env_steps=int(batch.mask.sum()), expert_steps=0, labels=labels, feedback_calls=calls)
        total, rows = self._sum_over_ranks(torch.tensor([float(score.sum()), len(score)])).tolist()
        self.statistics = {"return": total / rows}

    def _draw(self, count: int, rng: np.random.Generator) -> list[list[int]]:
        lengths = rng.integers(2, 5, count)
        return [rng.integers(FIRST_SYMBOL, self.vocabulary, length).tolist() for length in lengths]

    def _converse(self, actor: Actor, prompts: list[list[int]], deterministic: bool) -> list[Dialogue]:
        dialogues = [[Segment(prompt)] for prompt in prompts]
        new, state = list(prompts), None
        for turn in range(2):
            lengths = torch.tensor([len(ids) for ids in new])
            padded = pad_sequence([torch.tensor(ids) for ids in new], batch_first=True)
            tokens, log_probs, counts, state = actor.reply(
                padded, lengths, state, stop=(STOP,), max_new=MAX_NEW, deterministic=deterministic, resume=turn == 0
            )
            for row, dialogue in enumerate(dialogues):
                reply = tokens[row, : counts[row]].tolist()
                chances, score = log_probs[row, : len(reply)].tolist(), score_of(reply, prompts[row][-turn])
                dialogue += [Segment([ASK])] * turn + [Segment(reply, LEARNER, chances, score)]
                # the policy's state includes all tokens of the reply except the last
                new[row] = [reply[-1], ASK]
        return dialogues

    # ---- evaluation

    def evaluate(self, actor: Actor, rng: np.random.Generator, deterministic: bool) -> Batch:
        prompts = self._draw(max(self._share(self.evaluation_prompts), 1), rng)
        dialogues = self._converse(actor, prompts, deterministic)
        if deterministic:
            self.transcript = dialogues[:20]
        return as_batch(dialogues)

    def exhibits(self, folder: Path) -> list[Path]:
        path = folder / "transcript.md"
        lines = ["| prompt | first reply | second reply | score |", "| --- | --- | --- | --- |"]
        for dialogue in self.transcript:
            prompt, first, _, second = (" ".join(map(spelled, segment.ids)) for segment in dialogue)
            score = sum(segment.reward or 0 for segment in dialogue)
            lines.append(f"| {prompt} | {first} | {second} | {score:.2f} |")
        path.write_text("\n".join(lines) + "\n")
        return [path]


def score_of(reply: list[int], symbol: int) -> float:
    """.25 for the right symbol, and .25 more for stopping right after it."""
    return 0.25 * (reply[0] == symbol) + 0.25 * (reply[:2] == [symbol, STOP])


def expected_dialogue(prompt: list[int]) -> Dialogue:
    """The teacher's dialogue, with log-probabilities +∞, as for an expert that is certain."""
    first, last = (Segment([symbol, STOP], EXPERT, [float("inf")] * 2, 0.5) for symbol in (prompt[0], prompt[-1]))
    return [Segment(prompt), first, Segment([ASK]), last]


def spelled(token: int) -> str:
    """A token as text: 0 → ., 1 → ?, 2 → a, 3 → b, …"""
    return ".?"[token] if token < FIRST_SYMBOL else chr(ord("a") + token - FIRST_SYMBOL)


def paid_by_rank(batch: Batch) -> Tensor:
    """Rewards (B, T) from ranks, at a row's last valid step: the share of its group's other rows that the row beats.

    A tie counts half.
    """
    assert batch.group is not None and batch.rank is not None and batch.rewards is not None
    same_group = batch.group[:, None] == batch.group[None, :]
    wins = (same_group & (batch.rank[:, None] < batch.rank[None, :])).sum(1)
    ties = (same_group & (batch.rank[:, None] == batch.rank[None, :])).sum(1) - 1
    pay = (wins + 0.5 * ties) / (same_group.sum(1) - 1).clamp(min=1)
    steps = torch.arange(batch.valid.shape[1])
    last = torch.where(batch.valid, steps, -1).max(1).values
    return torch.where(steps == last[:, None], pay[:, None], 0.0)
