"""How well words follow each other: an interpolated trigram model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

ORDER = 3
STRENGTH = 1.0  # pseudo-counts that the shorter context is worth


class NGrams:
    """p(w|h) = (c(h, w) + m p(w|h′)) / (c(h) + m), h′ without its first word, down to uniform over all words and one
    unknown; m = 1 (MacKay & Peto 1995, with a fixed prior).

    Args: sentences: of words, each read by itself.
    """

    def __init__(self, sentences: Iterable[Sequence[str]]) -> None:
        self._follows: Counter[tuple[str, ...]] = Counter()  # context and word
        self._contexts: Counter[tuple[str, ...]] = Counter()
        for sentence in sentences:
            for end in range(len(sentence)):
                for start in range(max(end - ORDER + 1, 0), end + 1):
                    self._follows[tuple(sentence[start : end + 1])] += 1
                    self._contexts[tuple(sentence[start:end])] += 1
        self._words = sum(len(gram) == 1 for gram in self._follows) + 1

    def probability(self, context: Sequence[str], word: str) -> float:
        """Of a word behind its context, of which the last two words count."""
        p = 1 / self._words
        recent = tuple(context[-(ORDER - 1) :])
        for start in range(len(recent), -1, -1):
            short = recent[start:]
            p = (self._follows[*short, word] + STRENGTH * p) / (self._contexts[short] + STRENGTH)
        return p

    def mean_log_prob(self, context: Sequence[str], words: Sequence[str]) -> float:
        """Of the words behind the context, in nats a word.

        Raises:
            ValueError: no words.
        """
        if not words:
            raise ValueError("words: got none")
        said = [*context, *words]
        places = range(len(context), len(said))
        return sum(math.log(self.probability(said[:at], said[at])) for at in places) / len(words)


def novelty(words: Sequence[str]) -> float:
    """Share of the pairs of neighbouring words that were not said before: 1 where nothing is repeated."""
    pairs = list(zip(words, words[1:], strict=False))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
