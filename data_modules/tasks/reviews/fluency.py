"""Fluency of a text, by an interpolated trigram model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

ORDER = 3
STRENGTH = 1.0  # weight of the shorter context, in pseudo-counts


class NGrams:
    """Trigram model p(w|h) = (c(h, w) + m p(w|h′)) / (c(h) + m), where h′ is h without its first word.

    The recursion ends with a uniform distribution over all words and one unknown word; m = 1 (MacKay & Peto 1995, with
    a fixed prior).

    Args: sentences: lists of words; no n-gram crosses two sentences.
    """

    def __init__(self, sentences: Iterable[Sequence[str]]) -> None:
        self._follows: Counter[tuple[str, ...]] = Counter()  # context and word → count
        self._contexts: Counter[tuple[str, ...]] = Counter()
        for sentence in sentences:
            for end in range(len(sentence)):
                for start in range(max(end - ORDER + 1, 0), end + 1):
                    self._follows[tuple(sentence[start : end + 1])] += 1
                    self._contexts[tuple(sentence[start:end])] += 1
        self._words = sum(len(gram) == 1 for gram in self._follows) + 1

    def probability(self, context: Sequence[str], word: str) -> float:
        """The probability of a word after a context. Only the last two words of the context count."""
        p = 1 / self._words
        recent = tuple(context[-(ORDER - 1) :])
        for start in range(len(recent), -1, -1):
            short = recent[start:]
            p = (self._follows[*short, word] + STRENGTH * p) / (self._contexts[short] + STRENGTH)
        return p

    def mean_log_prob(self, context: Sequence[str], words: Sequence[str]) -> float:
        """The mean log-probability of words after a context, in nats per word.

        Raises:
            ValueError: there are no words.
        """
        if not words:
            raise ValueError("words: got none, must be at least one")
        text = [*context, *words]
        places = range(len(context), len(text))
        return sum(math.log(self.probability(text[:at], text[at])) for at in places) / len(words)


def novelty(words: Sequence[str]) -> float:
    """Distinct word bigrams over all bigrams: 1 if nothing is repeated."""
    pairs = list(zip(words, words[1:], strict=False))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
