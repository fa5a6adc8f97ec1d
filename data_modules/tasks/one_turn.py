"""Parts that tasks of one turn share: the dialogue, defects and their wording, and replies that are cut short."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from data_modules.text.environment import Case, Outcome

SHORTEST_SENTENCE = 3  # words


@dataclass(frozen=True)
class OneTurn:
    """A dialogue that ends with the first reply; `judge(case, text, finished)` gives the terms of its reward."""

    case: Case
    judge: Callable[[Case, str, bool], Mapping[str, float]]

    def reply(self, text: str, finished: bool) -> Outcome:
        parts = self.judge(self.case, text, finished)
        return Outcome(reward=sum(parts.values()), parts=parts)


@dataclass(frozen=True)
class Defect:
    """One error in a reply, with the words for its critique."""

    kind: str
    words: Mapping[str, str] = field(default_factory=dict)  # values for the placeholders of a paraphrase
    span: tuple[int, int] | None = None  # the characters of the reply that are wrong


def worded(defects: Sequence[Defect], paraphrases: Mapping[str, Sequence[str]], seed: int) -> str | None:
    """The defects as text, each in a random paraphrase that the seed determines; None without defects."""
    rng = Random(seed)
    texts = [rng.choice(paraphrases[defect.kind]).format(**defect.words) for defect in defects]
    return " ".join(texts) or None


def ends_as_sentence(text: str) -> bool:
    """Whether a text has enough words, and ends with a full stop, exclamation or question mark."""
    words = re.findall(r"[^\W_]+", text)
    return len(words) >= SHORTEST_SENTENCE and text.rstrip().endswith((".", "!", "?"))


def cut_short(text: str, rng: Random) -> str:
    """The first words of a sentence: at least two words, and never the full stop."""
    words = text.split()
    return " ".join(words[: rng.randint(2, len(words) - 1)])
