"""An episode of a text task: its prompt, what was said in turns, and what each turn earned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from data_modules.text.environment import Case, Outcome
from data_modules.text.rows import EXPERT, LEARNER, Segment


@dataclass(frozen=True)
class Prompt:
    """A case and the ids its dialogue starts with."""

    case: Case
    ids: list[int]


@dataclass
class Turn:
    """A reply and what followed. The tokens are those that were sampled: nothing is encoded twice."""

    tokens: list[int]  # with the one that ended it
    log_probs: list[float]
    finished: bool  # ended by itself
    text: str
    outcome: Outcome
    own: int | None = None  # tokens that the learner said, where an expert went on


@dataclass
class Episode:
    prompt: Prompt
    turns: list[Turn] = field(default_factory=list)
    cut: bool = False  # by the context, which had no room for another reply

    @property
    def score(self) -> float:
        """The sum of the rewards by the task's rule; NaN where the task has none."""
        rewards = [turn.outcome.reward for turn in self.turns if turn.outcome.reward is not None]
        return sum(rewards) if rewards else math.nan

    @property
    def parts(self) -> dict[str, float]:
        """What the score is made of, by name, summed over turns."""
        total: dict[str, float] = {}
        for turn in self.turns:
            for name, amount in turn.outcome.parts.items():
                total[name] = total.get(name, 0.0) + amount
        return total

    @property
    def finished(self) -> bool:
        """Every reply ended by itself."""
        return all(turn.finished for turn in self.turns)

    @property
    def text(self) -> str:
        """All that was said after the prompt: the replies, and what the environment said between them."""
        parts = [part for turn in self.turns[:-1] for part in (turn.text, turn.outcome.text)]
        return "\n".join(part.strip() for part in (*parts, self.turns[-1].text) if part.strip())

    @property
    def injected(self) -> int:
        """Tokens that an expert said, who went on in the learner's place."""
        return sum(len(turn.tokens) - turn.own for turn in self.turns if turn.own is not None)

    def paid(self, score: float) -> Episode:
        """The same, for which somebody else pays than the task's rule, at its end."""
        *before, last = self.turns
        none = [replace(turn, outcome=replace(turn.outcome, reward=0.0)) for turn in before]
        return Episode(self.prompt, [*none, replace(last, outcome=replace(last.outcome, reward=score))])

    @property
    def decided(self) -> int:
        """Tokens of all replies."""
        return sum(len(turn.tokens) for turn in self.turns)


def said(turn: Turn) -> Segment:
    """The reply, paid by the task's rule."""
    return Segment(turn.tokens, LEARNER, turn.log_probs, turn.outcome.reward)


def spoken(turn: Turn) -> list[Segment]:
    """The same with the speaker: the learner, or the learner and then an expert."""
    if turn.own is None:
        return [said(turn)]
    own, expert = slice(turn.own), slice(turn.own, None)
    begun = [Segment(turn.tokens[own], LEARNER, turn.log_probs[own])] if turn.own else []
    return [*begun, Segment(turn.tokens[expert], EXPERT, turn.log_probs[expert], turn.outcome.reward)]
