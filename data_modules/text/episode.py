"""An episode of a text task: the prompt, the turns, and the reward of every turn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from data_modules.text.environment import Case, Outcome
from data_modules.text.rows import EXPERT, LEARNER, Segment


@dataclass(frozen=True)
class Prompt:
    """A case, and the token ids that start a dialogue about the case."""

    case: Case
    ids: list[int]


@dataclass
class Turn:
    """A reply and its outcome. `tokens` are the tokens that were sampled; replies are never encoded again."""

    tokens: list[int]  # includes the stop token, if the reply has one
    log_probs: list[float]
    finished: bool  # False: the reply was cut off
    text: str
    outcome: Outcome
    learner_tokens: int | None = None  # number of tokens before an expert took over; None = no expert


@dataclass
class Episode:
    """A dialogue so far: the prompt and the turns after it."""

    prompt: Prompt
    turns: list[Turn] = field(default_factory=list)
    cut: bool = False  # True: the context had no room for another reply

    @property
    def score(self) -> float:
        """The sum of the rewards by the task's rule; NaN without a rule."""
        rewards = [turn.outcome.reward for turn in self.turns if turn.outcome.reward is not None]
        return sum(rewards) if rewards else math.nan

    @property
    def parts(self) -> dict[str, float]:
        """The terms of the score by name, summed over all turns."""
        total: dict[str, float] = {}
        for turn in self.turns:
            for name, amount in turn.outcome.parts.items():
                total[name] = total.get(name, 0.0) + amount
        return total

    @property
    def finished(self) -> bool:
        """Whether no reply was cut off."""
        return all(turn.finished for turn in self.turns)

    @property
    def text(self) -> str:
        """All text after the prompt: the replies, and the environment's answers between replies."""
        parts = [part for turn in self.turns[:-1] for part in (turn.text, turn.outcome.text)]
        return "\n".join(part.strip() for part in (*parts, self.turns[-1].text) if part.strip())

    @property
    def injected(self) -> int:
        """Number of tokens that an expert wrote after taking over."""
        return sum(len(turn.tokens) - turn.learner_tokens for turn in self.turns if turn.learner_tokens is not None)

    def with_score(self, score: float) -> Episode:
        """A copy of the episode in which `score` is the reward of the last turn and the only reward."""
        *before, last = self.turns
        none = [replace(turn, outcome=replace(turn.outcome, reward=0.0)) for turn in before]
        return Episode(self.prompt, [*none, replace(last, outcome=replace(last.outcome, reward=score))])

    @property
    def decided(self) -> int:
        """Number of tokens in all replies."""
        return sum(len(turn.tokens) for turn in self.turns)


def reply_segment(turn: Turn) -> Segment:
    """The reply as one segment of the learner, with the reward from the task's rule."""
    return Segment(turn.tokens, LEARNER, turn.log_probs, turn.outcome.reward)


def reply_segments(turn: Turn) -> list[Segment]:
    """The reply as one segment of the learner, or if an expert took over as two, the learner's and the expert's."""
    if turn.learner_tokens is None:
        return [reply_segment(turn)]
    learner, expert = slice(turn.learner_tokens), slice(turn.learner_tokens, None)
    begun = [Segment(turn.tokens[learner], LEARNER, turn.log_probs[learner])] if turn.learner_tokens else []
    return [*begun, Segment(turn.tokens[expert], EXPERT, turn.log_probs[expert], turn.outcome.reward)]
