"""What tasks of one turn share: the dialogue, defects and the words for them, and replies that stop too early."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from data_modules.text.environment import Case, Outcome

SHORTEST_SENTENCE = 3  # words


@dataclass(frozen=True)
class OneTurn:
    """A dialogue that ends with the first reply; `judge(case, text, finished)` names the parts of its reward."""

    case: Case
    judge: Callable[[Case, str, bool], Mapping[str, float]]

    def reply(self, text: str, finished: bool) -> Outcome:
        parts = self.judge(self.case, text, finished)
        return Outcome(reward=sum(parts.values()), parts=parts)


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong with a reply."""

    kind: str
    words: Mapping[str, str] = field(default_factory=dict)  # what a paraphrase of the critique fills in
    span: tuple[int, int] | None = None  # characters of the reply it points at


def worded(defects: Sequence[Defect], paraphrases: Mapping[str, Sequence[str]], seed: int) -> str | None:
    """The defects in words, each in one of its paraphrases; the same words for the same seed; None without defects."""
    rng = Random(seed)
    said = [rng.choice(paraphrases[defect.kind]).format(**defect.words) for defect in defects]
    return " ".join(said) or None


def ends_as_sentence(text: str) -> bool:
    """Whether a text has some words and stops at a full stop, exclamation or question mark."""
    words = re.findall(r"[^\W_]+", text)
    return len(words) >= SHORTEST_SENTENCE and text.rstrip().endswith((".", "!", "?"))


def cut_short(text: str, rng: Random) -> str:
    """The first words of a sentence, at least two and never its full stop."""
    words = text.split()
    return " ".join(words[: rng.randint(2, len(words) - 1)])
