"""Replies before and after training to the same held-out prompts, and metrics that compare them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

from data_modules.judgements.schema import plain
from data_modules.judgements.win_rate import win_rate
from data_modules.text.episode import Episode, Prompt
from data_modules.text.prompts import PromptFormat
from data_modules.text.transcript import reply_text

Mode = Literal["greedy", "sampled"]


@dataclass(frozen=True)
class Reply:
    """All replies of one episode, as text and as tokens."""

    text: str  # with several turns, the environment's answers are in brackets between the replies
    tokens: list[list[int]]  # the tokens of each turn, including the stop token
    ends: list[bool]  # False for a turn that was cut off
    score: float | None  # None if nothing scores replies

    @property
    def finished(self) -> bool:
        return all(self.ends)

    @property
    def marked(self) -> str:
        """The text for people; a reply that was cut off ends with …"""
        return self.text + ("" if self.ends[-1] else " …")


ReplySet = dict[str, list[Reply]]  # case id → replies; with sampling a prompt may have several


def reply_set(episodes: Sequence[Episode], scores: Sequence[float | None], by_role: bool = False) -> ReplySet:
    """The replies of the episodes, by case id.  by_role: with several turns, write the role before each message."""
    replies: ReplySet = {}
    for episode, score in zip(episodes, scores, strict=True):
        turns = episode.turns
        reply = Reply(
            reply_text(episode, by_role), [turn.tokens for turn in turns], [turn.finished for turn in turns], score
        )
        replies.setdefault(episode.prompt.case.id, []).append(reply)
    return replies


@dataclass
class StartReplies:
    """Replies to the same prompts before the first optimizer step (`start`) and at the last evaluation (`latest`)."""

    start: dict[Mode, ReplySet] = field(default_factory=dict)
    latest: dict[Mode, ReplySet] = field(default_factory=dict)
    step: int = -1  # number of optimizer steps before `latest`
    iteration: int = 0  # number of iterations before `latest`

    def remember(self, mode: Mode, replies: ReplySet, step: int, iteration: int) -> None:
        """Store replies as `latest`; at step 0 also store them as `start`."""
        if step == 0:
            self.start[mode] = replies
        if step != self.step:
            self.latest = {}
        self.latest[mode], self.step, self.iteration = replies, step, iteration

    def pairs(self, mode: Mode, prompts: Iterable[Prompt]) -> list[tuple[Prompt, Reply, Reply]]:
        """Pairs of a start's reply and the latest reply, in the order of the prompts; empty before the first step."""
        if self.step <= 0:
            return []
        start, latest = self.start.get(mode, {}), self.latest.get(mode, {})
        return [
            (prompt, *pair)
            for prompt in prompts
            for pair in zip(start.get(prompt.case.id, ()), latest.get(prompt.case.id, ()), strict=False)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The replies of the start, in plain containers."""
        return {
            mode: {id: [asdict(reply) for reply in replies] for id, replies in by_prompt.items()}
            for mode, by_prompt in self.start.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = {
            mode: {id: [Reply(**reply) for reply in replies] for id, replies in by_prompt.items()}  # type: ignore[misc]
            for mode, by_prompt in state.items()
        }


# ---- metrics


def figures(pairs: Sequence[tuple[Prompt, Reply, Reply]]) -> dict[str, float]:
    """Metrics that compare the policy's replies with the start's.

    `length` (tokens per turn), `distinct_2` and `unique` describe the policy's replies, and `start_<name>` the start's.
    `changed` is the share of replies that changed. If replies have scores, `win_rate` is the policy's win rate against
    the start, with its 95 % interval from `win_rate_low` to `win_rate_high`. A tie counts half.
    """
    if not pairs:
        return {}
    starts, policies = [start for _, start, _ in pairs], [policy for _, _, policy in pairs]
    changed = sum(start.text != policy.text for _, start, policy in pairs) / len(pairs)
    values = {"changed": changed, **_of_one(policies)}
    values |= {f"start_{name}": value for name, value in _of_one(starts).items()}
    wins = [preference(start, policy) for _, start, policy in pairs]
    scored = [win for win in wins if win is not None]
    if scored:
        values |= dict(zip(("win_rate", "win_rate_low", "win_rate_high"), win_rate(scored), strict=True))
    return values


def preference(start: Reply, policy: Reply) -> float | None:
    """1 if the policy's reply scored higher than the start's, ½ for a tie, else 0; None if a score is missing."""
    if start.score is None or policy.score is None or math.isnan(start.score + policy.score):
        return None
    return 0.5 * ((policy.score > start.score) + (policy.score >= start.score))


def _of_one(replies: Sequence[Reply]) -> dict[str, float]:
    counts = [len(tokens) for reply in replies for tokens in reply.tokens]
    return {
        "length": sum(counts) / len(counts),
        "distinct_2": distinct_2(replies),
        "unique": len({reply.text for reply in replies}) / len(replies),
    }


def distinct_2(replies: Sequence[Reply]) -> float:
    """Distinct-2: number of distinct token bigrams in all replies, divided by the number of bigrams; 0 without bigrams.

    Distinct-2 is low if replies repeat themselves or each other. Stop tokens do not count. Source: distinct-n, § 5 of
    https://arxiv.org/abs/1510.03055, which counts words.
    """
    pairs = [
        pair
        for reply in replies
        for tokens, ended in zip(reply.tokens, reply.ends, strict=True)
        for pair in pairwise(tokens[:-1] if ended else tokens)
    ]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


# ---- a file to annotate


def feedback_lines(
    pairs: Sequence[tuple[Prompt, Reply, Reply]], format: PromptFormat, tokenizer: str, run: str
) -> list[dict[str, Any]]:
    """Lines for people to annotate: a feedback file without feedback, with prompt, start's reply and policy's reply.

    `meta.replies_of` names the authors of the two replies. A prompt gets no line if a reply is empty, because nobody
    can judge an empty reply.

    Args: tokenizer: the digest of the tokenizer.
    """
    lines: dict[str, dict[str, Any]] = {}
    for prompt, *replies in pairs:
        if all(reply.text.strip() for reply in replies):
            meta = {"replies_of": ["start", "policy"], "finished": [reply.finished for reply in replies], "run": run}
            meta |= {"facts": facts} if (facts := prompt.case.plain_facts) else {}
            if all(len(reply.tokens) == 1 for reply in replies):
                meta |= {"tokens": [reply.tokens[0] for reply in replies], "tokenizer": tokenizer}
            line = {"id": prompt.case.id, "prompt": plain(format.posed(prompt.case.prompt))}
            line |= {"responses": [reply.text for reply in replies], "meta": meta}
            lines.setdefault(prompt.case.id, line)
    return list(lines.values())
