"""The mean of the numbers that a model might have said."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_modules.feedback.providers.answer import MARKS, Answer, Malformed, NoLogProbs, excerpt, log_sum, softmax


def expected_label(answer: Answer, labels: Sequence[int]) -> float:
    """Σ_x x p(x) over whole numbers, p the softmax of their log-probabilities: § 4 of https://arxiv.org/abs/2309.00267.

    A tokenizer may write 10 as 1 and 0. Where the answer itself began with the 1, the second token says how likely a 0
    comes behind it, and the probability of the 1 is shared out; else it is all counted to the 1. With such a tokenizer
    a scale from 0 to 9 is exact.
    Raises:
        Malformed: no such number is among the likeliest tokens.
        NoLogProbs: the server gave no log-probabilities.
    """
    if not answer.alternatives:
        raise NoLogProbs("expectation: the server gives no log-probabilities; take the number that is said instead")
    names = [str(label) for label in labels]
    first = _by_text(answer.alternatives[0])
    found = {name: first.get(name, -math.inf) for name in names}
    if len(answer.alternatives) > 1:
        begun = _begun(answer.text, first)
        longer = [name for name in names if begun and name != begun and name.startswith(begun)]
        second = _by_text(answer.alternatives[1])
        shares = {name: second.get(name[len(begun) :], -math.inf) for name in longer}
        rest = 1 - sum(math.exp(share) for share in shares.values())
        for name, share in shares.items():
            found[name] = log_sum([found[name], first[begun] + share])
        if longer and begun in found:
            found[begun] = first[begun] + math.log(rest) if rest > 0 else -math.inf
    if max(found.values()) == -math.inf:
        raise Malformed(
            f"score: no number from {names[0]} to {names[-1]} is among the likeliest tokens {excerpt(list(first))}"
        )
    return sum(label * p for label, p in zip(labels, softmax(list(found.values())), strict=True))


def _by_text(alternatives: dict[str, float]) -> dict[str, float]:
    """By what is left of a token without the white space before it."""
    texts = {token.strip(MARKS) for token in alternatives}
    return {text: log_sum([x for token, x in alternatives.items() if token.strip(MARKS) == text]) for text in texts}


def _begun(text: str, first: dict[str, float]) -> str:
    """The token that the answer begins with: the longest of the alternatives that it may have been."""
    said = text.strip()
    return max((token for token in first if token and said.startswith(token)), key=len, default="")
