"""The policy's replies to held-out prompts beside those of its start: what is kept of both, and figures of them."""

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
    """All that was said to a prompt in one episode."""

    text: str  # of several turns with the environment's words between, in brackets
    tokens: list[list[int]]  # of each turn, with the one that ended it
    ends: list[bool]  # whether each turn ended by itself
    score: float | None  # None where nobody pays

    @property
    def finished(self) -> bool:
        return all(self.ends)

    @property
    def marked(self) -> str:
        """The text for people, who see by … that it was cut off."""
        return self.text + ("" if self.ends[-1] else " …")


ReplySet = dict[str, list[Reply]]  # by the case's id; several where several were sampled


def reply_set(episodes: Sequence[Episode], scores: Sequence[float | None], by_role: bool = False) -> ReplySet:
    """What the episodes said, by prompt.  by_role: of several turns with the role before each."""
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
    """Replies to the same prompts: `start` before the first optimizer step, `latest` of the last evaluation."""

    start: dict[Mode, ReplySet] = field(default_factory=dict)
    latest: dict[Mode, ReplySet] = field(default_factory=dict)
    step: int = -1  # optimizer steps before `latest`
    iteration: int = 0  # that `latest` came after

    def remember(self, mode: Mode, replies: ReplySet, step: int, iteration: int) -> None:
        """Step 0 is the start."""
        if step == 0:
            self.start[mode] = replies
        if step != self.step:
            self.latest = {}
        self.latest[mode], self.step, self.iteration = replies, step, iteration

    def pairs(self, mode: Mode, prompts: Iterable[Prompt]) -> list[tuple[Prompt, Reply, Reply]]:
        """Start's and policy's replies in the order of the prompts; none before something was learned."""
        if self.step <= 0:
            return []
        start, latest = self.start.get(mode, {}), self.latest.get(mode, {})
        return [
            (prompt, *both)
            for prompt in prompts
            for both in zip(start.get(prompt.case.id, ()), latest.get(prompt.case.id, ()), strict=False)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The start's replies, in plain containers."""
        return {
            mode: {id: [asdict(reply) for reply in replies] for id, replies in by_prompt.items()}
            for mode, by_prompt in self.start.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = {
            mode: {id: [Reply(**reply) for reply in replies] for id, replies in by_prompt.items()}  # type: ignore[misc]
            for mode, by_prompt in state.items()
        }


# ---- figures


def figures(pairs: Sequence[tuple[Prompt, Reply, Reply]]) -> dict[str, float]:
    """What changed, by name: `length` in tokens a turn, `distinct_2`, `unique` and these of the start (`start_…`); the
    share of replies that `changed`; and where somebody pays the policy's `win_rate` with its 95 % interval, `…_low` to
    `…_high`. A tie counts half.
    """
    if not pairs:
        return {}
    starts, policies = [start for _, start, _ in pairs], [policy for _, _, policy in pairs]
    changed = sum(start.text != policy.text for _, start, policy in pairs) / len(pairs)
    values = {"changed": changed, **_of_one(policies)}
    values |= {f"start_{name}": value for name, value in _of_one(starts).items()}
    wins = [preference(start, policy) for _, start, policy in pairs]
    judged = [win for win in wins if win is not None]
    if judged:
        values |= dict(zip(("win_rate", "win_rate_low", "win_rate_high"), win_rate(judged), strict=True))
    return values


def preference(start: Reply, policy: Reply) -> float | None:
    """1 where the policy's reply scored higher, ½ for a tie, 0; None where nobody paid for both."""
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
    """Different pairs of neighbouring tokens over all such pairs, of all replies together; 0 where there is none.

    Low where replies repeat themselves or each other. The token that ends a reply does not count (distinct-n,
    § 5 of https://arxiv.org/abs/1510.03055, there of words).
    """
    pairs = [
        pair
        for reply in replies
        for tokens, ended in zip(reply.tokens, reply.ends, strict=True)
        for pair in pairwise(tokens[:-1] if ended else tokens)
    ]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


# ---- for somebody to compare


def feedback_lines(
    pairs: Sequence[tuple[Prompt, Reply, Reply]], format: PromptFormat, tokenizer: str, run: str
) -> list[dict[str, Any]]:
    """Lines of a feedback file: the prompt, and the start's and the policy's reply, of which nothing is said yet.

    `meta.replies_of` names them. A prompt to which one of the two was empty has no line: nothing can be said of that.

    Args: tokenizer: its digest.
    """
    lines: dict[str, dict[str, Any]] = {}
    for prompt, *both in pairs:
        if all(reply.text.strip() for reply in both):
            meta = {"replies_of": ["start", "policy"], "finished": [reply.finished for reply in both], "run": run}
            meta |= {"facts": facts} if (facts := prompt.case.plain_facts) else {}
            if all(len(reply.tokens) == 1 for reply in both):
                meta |= {"tokens": [reply.tokens[0] for reply in both], "tokenizer": tokenizer}
            line = {"id": prompt.case.id, "prompt": plain(format.posed(prompt.case.prompt))}
            line |= {"responses": [reply.text for reply in both], "meta": meta}
            lines.setdefault(prompt.case.id, line)
    return list(lines.values())
