"""Expected score: the mean of the numbers that a model could have answered, weighted by probability."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_modules.feedback.providers.answer import MARKS, Answer, Malformed, NoLogProbs, excerpt, log_sum, softmax


def expected_label(answer: Answer, labels: Sequence[int]) -> float:
    """Expected label Σ_x x p(x) over whole numbers x, where p is the softmax of their log-probabilities.

    Source: § 4 of https://arxiv.org/abs/2309.00267. A tokenizer may write 10 as the two tokens 1 and 0. If the sampled
        answer begins with the token 1, the alternatives of the second token split the probability of that 1 between 1
        and 10. Otherwise all of the probability counts for 1. With such a tokenizer use a scale from 0 to 9, for which
        the result is exact.
    Raises:
        Malformed: no label is among the most probable tokens.
        NoLogProbs: the server gave no log-probabilities.
    """
    if not answer.alternatives:
        raise NoLogProbs("expectation: the server gives no log-probabilities; set expectation: false instead")
    names = [str(label) for label in labels]
    first = _by_text(answer.alternatives[0])
    log_probs = {name: first.get(name, -math.inf) for name in names}
    if len(answer.alternatives) > 1:
        begun = _begun(answer.text, first)
        longer = [name for name in names if begun and name != begun and name.startswith(begun)]
        second = _by_text(answer.alternatives[1])
        shares = {name: second.get(name[len(begun) :], -math.inf) for name in longer}
        rest = 1 - sum(math.exp(share) for share in shares.values())
        for name, share in shares.items():
            log_probs[name] = log_sum([log_probs[name], first[begun] + share])
        if longer and begun in log_probs:
            log_probs[begun] = first[begun] + math.log(rest) if rest > 0 else -math.inf
    if max(log_probs.values()) == -math.inf:
        raise Malformed(
            f"score: no number from {names[0]} to {names[-1]} is among the most probable tokens {excerpt(list(first))}"
        )
    return sum(label * p for label, p in zip(labels, softmax(list(log_probs.values())), strict=True))


def _by_text(alternatives: dict[str, float]) -> dict[str, float]:
    """Token text without surrounding white space → log-probability."""
    texts = {token.strip(MARKS) for token in alternatives}
    return {text: log_sum([x for token, x in alternatives.items() if token.strip(MARKS) == text]) for text in texts}


def _begun(text: str, first: dict[str, float]) -> str:
    """The first token of the answer, which is the longest alternative that the answer begins with."""
    stripped = text.strip()
    return max((token for token in first if token and stripped.startswith(token)), key=len, default="")
